"""When a run ends before its last step: at a signal or before a time limit, all ranks after the same step.

Ranks agree about once a second, by one small sum, so that short steps do not pay for it.
"""

import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen3_model.errors import UsageError
from qwen3_model.ranks.msrun.stop_signals import StopRequest
from qwen3_train.settings.exit_file import KEY, asks_to_exit

CHECK_S = 1.0
"""Seconds between two looks, at least a step."""
DISK_BYTES_PER_S = 200e6
"""Assumed for the first checkpoint; later ones are measured."""
STOP_AT_VARIABLE = "QWEN3_STOP_AT"
"""Tells the workers the time, in seconds since 1970, by which the run must have saved."""
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class StopAgreement:
    """Decide on all ranks alike whether the run ends now."""

    def __init__(
        self,
        request: StopRequest,
        add: Callable[..., Sequence[float]],
        *,
        is_first: bool,
        is_alone: bool,
        checkpoint_bytes: int,
        exit_file: Path | None = None,
    ) -> None:
        """Take what each rank knows.

        Args:
            request: Signals of this process, and the time limit.
            add: Gives the sums of its arguments over all ranks, which all call it.
            is_first: Whether this is rank 0, whose clock counts.
            is_alone: Whether there are no other ranks, so that each step can be asked for.
            checkpoint_bytes: Bytes of this rank's checkpoint.
            exit_file: What rank 0 looks into, see `asks_to_exit`.
        """
        self.request, self.add, self.is_first, self.is_alone = request, add, is_first, is_alone
        self.exit_file = exit_file
        self.save_s = checkpoint_bytes / DISK_BYTES_PER_S
        """Longest time that a checkpoint takes."""
        self._next = 0

    def saved_in(self, seconds: float) -> None:
        """Take note of how long a checkpoint took."""
        self.save_s = max(self.save_s, seconds)

    def reason(self, step: int, step_time_s: float) -> str:
        """Return why the run ends before step `step`, or ""; all ranks call this for each step.

        Args:
            step: Number of the step that would be next.
            step_time_s: What the last one took; 0 before the first.
        """
        if step < self._next and not self.is_alone:
            return ""
        pause_s = max(CHECK_S, step_time_s)
        by = self.request.by
        asked = self.is_first and self.exit_file is not None and asks_to_exit(self.exit_file)
        mine = (by == signal.SIGTERM, by == signal.SIGUSR1, self._is_late(pause_s + step_time_s), asked)
        values = [float(each) for each in mine] + [step_time_s if self.is_first else 0.0]
        terminated, user, late, asked_of_all, common_s = values if self.is_alone else self.add(*values)
        self._next = step + max(1, int(CHECK_S / common_s) if common_s > 0 else 1)
        if terminated:
            return "SIGTERM"
        if asked_of_all:
            return f"{KEY} in {self.exit_file}"
        return "SIGUSR1" if user else "the time limit" if late else ""

    def _is_late(self, pause_s: float) -> bool:
        limit_s = self.request.stop_at_s
        if limit_s is None or not self.is_first:
            return False
        return time.time() + 1.5 * (pause_s + self.save_s) > limit_s


def parse_duration(text: str) -> float:
    """Return the seconds of 90s, 30m, 3h30m, 1d, or of Slurm's [D-]HH:MM:SS.

    Raises:
        UsageError: It is neither, or not above 0.
    """
    seconds = 0.0
    if parts := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, minutes, rest = (int(part or 0) for part in parts.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    elif re.fullmatch(r"(?:\d+[dhms])+", text):
        seconds = sum(int(count) * UNITS_S[unit] for count, unit in re.findall(r"(\d+)([dhms])", text))
    if not seconds:
        raise UsageError(f"--max-time {text!r} is no time above 0; write 30m, 3h30m or 11:55:00")
    return seconds
