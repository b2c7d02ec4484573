"""What becomes of a step whose loss or gradients are not usable: the run stops, or the step is skipped."""

import math

from qwen3_model.errors import Qwen3Error
from qwen3_train.settings.skip import SkipSettings
from qwen3_train.step.step import StepResult


class SkippedSteps:
    """Count the steps that were skipped one after the other."""

    def __init__(self, skip: SkipSettings | None) -> None:
        self.skip, self.in_row = skip, 0

    def notice(self, number: int, result: StepResult) -> str | None:
        """Return a warning when the step was skipped.

        Raises:
            Qwen3Error: The loss or the norm is no number, or too many steps were skipped.
        """
        values = f"the loss is {result.loss} and the gradients' norm {result.grad_norm}"
        is_number = math.isfinite(result.loss) and math.isfinite(result.grad_norm)
        if not is_number and (self.skip is None or self.skip.stops_at_nan):
            spoilt = ", so the weights are spoilt and were not saved" if self.skip is None else ""
            raise Qwen3Error(
                f"step {number}: {values}{spoilt}; "
                "lower lr_schedule.learning_rate or turn on runner_wrapper.use_clip_grad, then continue from "
                "the last checkpoint with --resume_training True"
            )
        if result.is_applied:
            self.in_row = 0
            return None
        assert self.skip is not None
        self.in_row += 1
        limit, most = f"global_norm_spike_threshold={self.skip.norm_limit:g}", self.skip.most_in_row
        why = f"{values}, not below {limit}" if is_number else values
        if self.in_row >= most:
            raise Qwen3Error(
                f"step {number}: {why}; {self.in_row} steps in a row were skipped, as many as "
                "monitor_config.global_norm_spike_count_threshold allows; look at their data or raise the "
                "threshold, then continue from the last checkpoint with --resume_training True"
            )
        return (
            f"step {number} skipped: {why}; weights and moments are as before "
            f"({self.in_row} in a row, the run stops at {most})"
        )
