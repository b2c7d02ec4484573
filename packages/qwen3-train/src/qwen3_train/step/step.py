"""One optimizer step: forward, backward, clipping and AdamW.

`passes` runs the compiled graphs: one graph does all of a step of one micro-batch; with gradient accumulation
or pipeline stages one adds each micro-batch's gradients to a sum, and another applies the sum. `gradients`
adds up what the ranks have. Every rank then knows loss and norm of the whole step, by which `guarded_update`
decides whether to apply it.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, ParameterTuple
from numpy.typing import NDArray

from qwen3_model.checkpoints.fused import MOMENTS, weight_of
from qwen3_model.network.lora import LoraDropout
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.loss.loss import TokenLoss, loss_arguments
from qwen3_train.parallel.grid import Grid, single_grid
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.settings.skip import SkipSettings
from qwen3_train.step.passes import SinglePass, SummedPasses
from qwen3_train.step.pipeline import PipelineStage
from qwen3_train.step.shared_graphs import share_layer_graphs
from qwen3_train.step.step_graphs import Finish, LossOnly, make_gradient_sum
from qwen3_train.update.gradients import OwnGradients, SharedGradients
from qwen3_train.update.guarded_update import GuardedUpdate, is_applied
from qwen3_train.update.optimizer import AdamW, adam_scalars
from qwen3_train.update.shared_adam import GatherMoments, SharedAdamW

Optimizer = AdamW | SharedAdamW


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step reports."""

    loss: float
    """Mean over the unmasked tokens of the step, before its update, in nats."""
    grad_norm: float
    """Global norm of the gradients, before clipping."""
    is_applied: bool = True
    """False where the step was skipped: weights and moments are as before."""


class TrainStep:
    """Update a model batch by batch; the only object of a run that has state besides the model."""

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        settings: AdamSettings,
        *,
        max_norm: float | None,
        num_micro_batches: int,
        grid: Grid | None = None,
        shares_moments: bool = False,
        skip: SkipSettings | None = None,
    ) -> None:
        """Make the optimizer and the graphs; each graph is compiled at its first call.

        Args:
            model: With adapters and recomputation, should it have any; its weights may come later.
            settings: AdamW's.
            max_norm: Clip the global norm to this; None for no clipping.
            num_micro_batches: Micro-batches of each step on this replica.
            grid: What this rank is; one process when left out.
            shares_moments: ZeRO-1.
            skip: Which steps not to apply; None to apply all.
        """
        self.settings, self.grid, self.skip = settings, grid or single_grid(model.config), skip
        self.kernels = model.kernels
        self.num_skipped = 0
        """Steps of the whole run that were not applied; the bias correction does not count them."""
        self.dropout: LoraDropout | None = None
        """The adapters' dropout; the owner of the model sets it."""
        share_layer_graphs(model)
        # What is frozen under adapters takes no gradient.
        self.weights: dict[str, Parameter] = {
            name: weight for name, weight in model.parameters_and_names() if weight.requires_grad
        }
        has_sums = num_micro_batches > 1 or self.grid.layout.pp > 1
        finish = self._make_finish(max_norm, shares_moments=shares_moments, has_sums=has_sums)
        self.adam = self._make_optimizer(finish, shares_moments=shares_moments, has_sums=has_sums)
        update = GuardedUpdate(self.adam, skip)
        self.passes: SinglePass | SummedPasses
        if has_sums:
            sums = ParameterTuple([make_gradient_sum(*each) for each in self.weights.items()])
            self.passes = SummedPasses(
                model, self.grid, self.weights, sums, update, finish, shares_moments=shares_moments
            )
        else:
            self.passes = SinglePass(model, self.adam.weights, update, finish)

    def _make_finish(self, max_norm: float | None, *, shares_moments: bool, has_sums: bool) -> Finish:
        if self.grid.layout.num_ranks == 1:
            return OwnGradients(len(self.weights), max_norm, self.kernels)
        return SharedGradients(
            self.weights, self.grid, max_norm, self.kernels, shares_moments=shares_moments, are_sums=has_sums
        )

    def _make_optimizer(self, finish: Finish, *, shares_moments: bool, has_sums: bool) -> Optimizer:
        # A sum stays until it is cleared, so the update may overwrite it.
        stays = [has_sums and is_handed_back for is_handed_back in finish.hands_back]
        if shares_moments and self.grid.replicas.size > 1:
            return SharedAdamW(self.weights, self.settings, self.grid.replicas, self.kernels, stays)
        return AdamW(self.weights, self.settings, self.kernels, stays)

    def run(self, micro_batches: Sequence[Batch], lr: float, step: int) -> StepResult:
        """Take one step.

        Args:
            micro_batches: This replica's, as many as `num_micro_batches`, of equal shapes.
            lr: Learning rate of this step.
            step: Number of this step, counted from 1.
        """
        scalars = adam_scalars(self.kernels, self.settings, lr, step - self.num_skipped)

        def before_pass(number: int) -> None:
            # Counted as if one process took the passes of all replicas in turn.
            if self.dropout is not None:
                num_before = (step - 1) * len(micro_batches) + number
                self.dropout.switch_on(num_before * self.grid.layout.dp + self.grid.replica)

        loss, norm = self.passes.run(micro_batches, scalars, before_pass)
        result = StepResult(loss, norm, is_applied(self.skip, loss, norm))
        if not result.is_applied:
            self.num_skipped += 1
            self.passes.forget_gradients()
        return result

    def moments(self) -> dict[str, Parameter]:
        """Return the optimizer's state under the names that checkpoints use."""
        names = list(self.weights)
        return {f"adam_m.{name}": m for name, m in zip(names, self.adam.m, strict=True)} | {
            f"adam_v.{name}": v for name, v in zip(names, self.adam.v, strict=True)
        }

    def whole_moments(self, wanted: Set[str] | None = None) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield names and values of the moments that replicas cut by elements, put together for a checkpoint.

        All ranks call this.

        Args:
            wanted: Names of those to yield; None for all.
        """
        if not isinstance(self.adam, SharedAdamW):
            return
        flat = [name for name, is_flat in zip(self.weights, self.adam.is_flat, strict=True) if is_flat]
        moments, gather = self.moments(), GatherMoments(self.adam.replicas)
        for name in (f"{prefix}{name}" for prefix in MOMENTS for name in flat):
            whole = gather(moments[name])
            if wanted is None or name in wanted:
                yield name, whole.asnumpy().reshape(self.weights[weight_of(name)].shape)


class Evaluation:
    """Compute token losses without gradients."""

    def __init__(self, model: Qwen3ForCausalLM, grid: Grid | None = None) -> None:
        self.kernels = model.kernels
        self._graph: PipelineStage | LossOnly
        if grid is not None and grid.layout.pp > 1:
            self._graph = PipelineStage(model, grid, None)
        else:
            self._graph = LossOnly(TokenLoss(model, has_gradients=False))

    def run(self, batch: Batch) -> float:
        """Return the sum of the batch's token losses times their weights; 0 on all but the last stage."""
        if isinstance(self._graph, PipelineStage):
            return self._graph.evaluate(batch)
        return float(self._graph(*loss_arguments(batch, self.kernels)).asnumpy())
