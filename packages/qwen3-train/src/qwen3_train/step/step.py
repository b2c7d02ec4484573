"""One optimizer step: forward, backward, clipping and AdamW in one compiled graph.

With gradient accumulation there are two graphs: one adds a micro-batch's gradients to a sum, one applies the
sum. A pipeline stage has graphs of its own for the first of these. What other ranks have is summed by
`gradients`; every rank then knows loss and norm of the whole step, and `guarded_update` whether to apply it.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from numpy.typing import NDArray

from qwen3_model.checkpoints.fused import MOMENTS, weight_of
from qwen3_model.network.kernels.seam import Kernels
from qwen3_model.network.lora import LoraDropout
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.loss.loss import TokenLoss, loss_arguments
from qwen3_train.parallel.grid import Grid, single_grid
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.settings.skip import SkipSettings
from qwen3_train.step.pipeline import PipelineStage
from qwen3_train.step.shared_graphs import share_layer_graphs
from qwen3_train.update.gradients import AddGradients, OwnGradients, SharedGradients, SumReplicas
from qwen3_train.update.guarded_update import GuardedUpdate, clear, is_applied
from qwen3_train.update.optimizer import AdamW, adam_scalars
from qwen3_train.update.shared_adam import GatherMoments, SharedAdamW

Optimizer = AdamW | SharedAdamW
Finish = OwnGradients | SharedGradients


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
        """Make ready for steps of `num_micro_batches`.

        Args:
            model: With adapters and recomputation, should it have any; its weights may come later.
            settings: Of AdamW.
            max_norm: Clip the global norm to this; None for no clipping.
            num_micro_batches: Of each step, on this replica.
            grid: What this rank is; one process when left out.
            shares_moments: ZeRO-1.
            skip: Which steps not to apply; None to apply all.
        """
        self.settings, self.grid, self.skip = settings, grid or single_grid(model.config), skip
        self.num_skipped = 0
        """Steps that were not applied, of the whole run; the bias correction does not count them."""
        share_layer_graphs(model)
        # What is frozen under adapters takes no gradient.
        self.weights: dict[str, Parameter] = {
            name: weight for name, weight in model.parameters_and_names() if weight.requires_grad
        }
        self.dropout: LoraDropout | None = None
        """Of adapters; the owner of the model sets it."""
        self.is_alone, self.kernels = self.grid.layout.num_ranks == 1, model.kernels
        takes_sums = num_micro_batches > 1 or self.grid.layout.pp > 1
        sums = ParameterTuple([_sum_of_gradients(*each) for each in self.weights.items()] * takes_sums)
        finish = (
            OwnGradients(len(self.weights), max_norm, self.kernels)
            if self.is_alone
            else SharedGradients(
                self.weights,
                self.grid,
                max_norm,
                self.kernels,
                shares_moments=shares_moments,
                are_sums=takes_sums,
            )
        )
        stays = [takes_sums and own for own in finish.hands_back]
        if shares_moments and self.grid.replicas.size > 1:
            self.adam: Optimizer = SharedAdamW(
                self.weights, settings, self.grid.replicas, self.kernels, stays
            )
        else:
            self.adam = AdamW(self.weights, settings, self.kernels, stays)
        update = GuardedUpdate(self.adam, skip)
        self._sums: ParameterTuple | None = None
        self._whole: Any = None
        self._stage: PipelineStage | None = None
        if not takes_sums:
            self._whole = _WholeStep(TokenLoss(model), self.adam.weights, update, finish)
            return
        if self.grid.layout.pp == 1:
            self._add = _AddGradients(TokenLoss(model), self.adam.weights, sums)
        else:
            self._stage = PipelineStage(model, self.grid, sums)
        self._sums, self._apply = sums, _ApplyGradients(update, sums, finish)
        self._clear = _ClearSums(sums, self.kernels)
        self._sum_replicas: Any = None
        if self.grid.replicas.size > 1:
            self._sum_replicas = SumReplicas(self.weights, sums, self.grid, self.kernels, shares_moments)

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
                place = (step - 1) * len(micro_batches) + number
                self.dropout.switch_on(place * self.grid.layout.dp + self.grid.replica)

        if self._whole is not None:
            before_pass(0)
            loss, norm = self._whole(*scalars, *loss_arguments(micro_batches[0], self.kernels))
            return self._result(float(loss.asnumpy()), float(norm.asnumpy()))
        # Float64 on the host: the sum then does not depend on how the step was cut.
        total = 0.0
        if self._stage is not None:
            total = self._stage.train(micro_batches, before_pass)
        else:
            for number, batch in enumerate(micro_batches):
                before_pass(number)
                loss = self._add(*loss_arguments(batch, self.kernels))
                total += float(loss.asnumpy())
        if self._sum_replicas is not None:
            self._sum_replicas()
        loss, norm = self._apply(*scalars, Tensor(np.float32(total)))
        self._clear()
        return self._result(total if self.is_alone else float(loss.asnumpy()), float(norm.asnumpy()))

    def _result(self, loss: float, norm: float) -> StepResult:
        result = StepResult(loss, norm, is_applied(self.skip, loss, norm))
        if not result.is_applied:
            self.num_skipped += 1
            if not self.kernels.clears_nan:
                for total in self._sums or ():
                    clear(total)
        return result

    def moments(self) -> dict[str, Parameter]:
        """Return the optimizer's state under the names that checkpoints use."""
        names = list(self.weights)
        return {f"adam_m.{name}": m for name, m in zip(names, self.adam.m, strict=True)} | {
            f"adam_v.{name}": v for name, v in zip(names, self.adam.v, strict=True)
        }

    def whole_moments(self, wanted: Set[str] | None = None) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield, whole, the moments that replicas cut by elements, for a checkpoint; all ranks call this.

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
    """Add up token losses without gradients."""

    def __init__(self, model: Qwen3ForCausalLM, grid: Grid | None = None) -> None:
        self._stage = PipelineStage(model, grid, None) if grid and grid.layout.pp > 1 else None
        self.kernels = model.kernels
        self._loss: Any = None if self._stage else _Forward(TokenLoss(model, has_gradients=False))

    def run(self, batch: Batch) -> float:
        """Return the sum of the batch's token losses times their weights; 0 on all but the last stage."""
        if self._stage is not None:
            return self._stage.evaluate(batch)
        return float(self._loss(*loss_arguments(batch, self.kernels)).asnumpy())


class _Forward(nn.Cell):
    def __init__(self, loss: TokenLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss

    @ms.jit
    def construct(self, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.loss(ids, labels, weights, positions, segments)


class _WholeStep(nn.Cell):
    def __init__(
        self, loss: TokenLoss, weights: ParameterTuple, update: GuardedUpdate, finish: Finish
    ) -> None:
        super().__init__(auto_prefix=False)
        self.update, self.finish = update, finish
        self.loss_and_gradients = ms.value_and_grad(loss, None, weights)

    @ms.jit
    def construct(self, rate, eps, decay, step, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0913
        loss, gradients = self.loss_and_gradients(ids, labels, weights, positions, segments)
        gradients, scale, norm, loss = self.finish(gradients, loss)
        done = self.update(rate, eps, decay, step, gradients, scale, loss, norm)
        return ops.depend(loss, done), norm


class _AddGradients(nn.Cell):
    def __init__(self, loss: TokenLoss, weights: ParameterTuple, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.add = AddGradients(sums, loss.model.kernels)
        self.loss_and_gradients = ms.value_and_grad(loss, None, weights)

    @ms.jit
    def construct(self, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        loss, gradients = self.loss_and_gradients(ids, labels, weights, positions, segments)
        return self.add(gradients, loss)


class _ApplyGradients(nn.Cell):
    """Takes the sums themselves for gradients: a copy of them is a quarter more of all that a rank has."""

    def __init__(self, update: GuardedUpdate, sums: ParameterTuple, finish: Finish) -> None:
        super().__init__(auto_prefix=False)
        self.update, self.sums, self.finish = update, sums, finish

    @ms.jit
    def construct(self, rate, eps, decay, step, loss):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        gradients, scale, norm, loss = self.finish(self.sums, loss)
        done = self.update(rate, eps, decay, step, gradients, scale, loss, norm)
        return loss, ops.depend(norm, done)


class _ClearSums(nn.Cell):
    """A graph of its own: in one with the update MindSpore would keep copies of what that reads."""

    def __init__(self, sums: ParameterTuple, kernels: Kernels) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.kernels, self.each = sums, kernels, ops.HyperMap()
        self.done = Tensor(np.zeros(1, np.float32))

    @ms.jit
    def construct(self):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return ops.depend(self.done * 1.0, self.each(self._clear, self.sums))

    def _clear(self, total):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.kernels.clear(total)


def _sum_of_gradients(name: str, weight: Parameter) -> Parameter:
    return Parameter(
        Tensor(np.zeros(weight.shape, np.float32)), name=f"accu_grads.{name}", requires_grad=False
    )
