"""One optimizer step: forward, backward, clipping and AdamW in one compiled graph.

With gradient accumulation there are two graphs: one adds a micro-batch's gradients to a sum, one applies the
sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from qwen3_model.model import Qwen3ForCausalLM
from qwen3_train.adam_settings import AdamSettings
from qwen3_train.batches import Batch
from qwen3_train.loss import TokenLoss
from qwen3_train.optimizer import AdamW, ClipByGlobalNorm, adam_scalars


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step reports."""

    loss: float
    """Mean over the unmasked tokens of the step, before its update, in nats."""
    grad_norm: float
    """Global norm of the gradients, before clipping."""


class TrainStep:
    """Update a model batch by batch; the only object of a run that has state besides the model."""

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        settings: AdamSettings,
        *,
        max_norm: float | None,
        num_micro_batches: int,
    ) -> None:
        self.settings = settings
        self.weights: dict[str, Parameter] = dict(model.parameters_and_names())
        self.adam = AdamW(self.weights, settings)
        loss = TokenLoss(model)
        if num_micro_batches == 1:
            self._whole = _WholeStep(loss, self.adam, max_norm)
        else:
            sums = ParameterTuple([_sum_of_gradients(name, weight) for name, weight in self.weights.items()])
            self._add = _AddGradients(loss, self.adam.weights, sums)
            self._apply = _ApplyGradients(self.adam, sums, max_norm)
        self.num_micro_batches = num_micro_batches

    def run(self, micro_batches: Sequence[Batch], lr: float, step: int) -> StepResult:
        """Take one step.

        Args:
            micro_batches: As many as `num_micro_batches`, of equal shapes.
            lr: Learning rate of this step.
            step: Number of this step, counted from 1.
        """
        scalars = adam_scalars(self.settings, lr, step)
        if self.num_micro_batches == 1:
            loss, norm = self._whole(*scalars, *tensors(micro_batches[0]))
            return StepResult(float(loss.asnumpy()), float(norm.asnumpy()))
        # Float64 on the host: the sum then does not depend on how the step was cut.
        total = sum(float(self._add(*tensors(batch)).asnumpy()) for batch in micro_batches)
        return StepResult(total, float(self._apply(*scalars).asnumpy()))

    def moments(self) -> dict[str, Parameter]:
        """Return the optimizer's state under the names that checkpoints use."""
        names = list(self.weights)
        return {f"adam_m.{name}": m for name, m in zip(names, self.adam.m, strict=True)} | {
            f"adam_v.{name}": v for name, v in zip(names, self.adam.v, strict=True)
        }


class Evaluation:
    """Add up token losses without gradients."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        self._loss = _Forward(TokenLoss(model))

    def run(self, batch: Batch) -> float:
        """Return the sum of the batch's token losses times their weights."""
        return float(self._loss(*tensors(batch)).asnumpy())


def tensors(batch: Batch) -> list[Tensor | None]:
    """Return the five arguments of `TokenLoss`."""
    parts = (
        batch.input_ids_BL,
        batch.labels_BL,
        batch.weights_BL,
        batch.position_ids_BL,
        batch.segment_ids_BL,
    )
    return [None if part is None else Tensor(part) for part in parts]


class _Forward(nn.Cell):
    def __init__(self, loss: TokenLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss

    @ms.jit
    def construct(self, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.loss(ids, labels, weights, positions, segments)


class _WholeStep(nn.Cell):
    def __init__(self, loss: TokenLoss, adam: AdamW, max_norm: float | None) -> None:
        super().__init__(auto_prefix=False)
        self.adam, self.clip = adam, ClipByGlobalNorm(max_norm)
        self.loss_and_gradients = ms.value_and_grad(loss, None, adam.weights)

    @ms.jit
    def construct(self, rate, eps, decay, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0913
        loss, gradients = self.loss_and_gradients(ids, labels, weights, positions, segments)
        gradients, norm = self.clip(gradients)
        done = self.adam(rate, eps, decay, gradients)
        return ops.depend(loss, done), norm


class _AddGradients(nn.Cell):
    def __init__(self, loss: TokenLoss, weights: ParameterTuple, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.add = sums, ops.AssignAdd()
        self.loss_and_gradients = ms.value_and_grad(loss, None, weights)

    @ms.jit
    def construct(self, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        loss, gradients = self.loss_and_gradients(ids, labels, weights, positions, segments)
        for i in range(len(self.sums)):
            loss = ops.depend(loss, self.add(self.sums[i], gradients[i]))
        return loss


class _ApplyGradients(nn.Cell):
    def __init__(self, adam: AdamW, sums: ParameterTuple, max_norm: float | None) -> None:
        super().__init__(auto_prefix=False)
        self.adam, self.sums, self.clip = adam, sums, ClipByGlobalNorm(max_norm)
        self.assign = ops.Assign()

    @ms.jit
    def construct(self, rate, eps, decay):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        gradients: tuple[Tensor, ...] = ()
        for total in self.sums:
            gradients = (*gradients, total * 1.0)
        gradients, norm = self.clip(gradients)
        done = self.adam(rate, eps, decay, gradients)
        for i in range(len(self.sums)):
            done = ops.depend(done, self.assign(self.sums[i], ops.zeros_like(ops.depend(gradients[i], done))))
        return ops.depend(norm, done)


def _sum_of_gradients(name: str, weight: Parameter) -> Parameter:
    return Parameter(
        Tensor(np.zeros(weight.shape, np.float32)), name=f"accu_grads.{name}", requires_grad=False
    )
