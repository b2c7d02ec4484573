"""The compiled graphs of a step on a rank that has every layer; `stage_graphs` has those of a pipeline stage.

A step of one micro-batch is one graph, `WholeStep`. A step of several runs `AddMicroBatch` for each of them,
then `ApplySums` and `ClearSums` once.

Arguments of the calls:
    rate, eps, decay, step: What the optimizer's update takes first, from `optimizer.adam_scalars`.
    ids, labels, weights, positions, segments: One micro-batch, from `loss.loss_arguments`.

MindSpore gives neither types nor values to the parameters of a compiled `construct`; hence no annotations.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from qwen3_model.network.kernels.seam import Kernels
from qwen3_train.loss.loss import TokenLoss
from qwen3_train.update.gradients import AddGradients, OwnGradients, SharedGradients
from qwen3_train.update.guarded_update import GuardedUpdate

Finish = OwnGradients | SharedGradients
"""Makes of this rank's gradients those of all ranks, with their norm and the scale that clips them."""


class LossOnly(nn.Cell):
    """Return the loss of a micro-batch, without gradients."""

    def __init__(self, loss: TokenLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss

    @ms.jit
    def construct(self, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return self.loss(ids, labels, weights, positions, segments)


class WholeStep(nn.Cell):
    """Compute loss and gradients of one micro-batch and update the weights; return loss and norm."""

    def __init__(
        self, loss: TokenLoss, weights: ParameterTuple, update: GuardedUpdate, finish: Finish
    ) -> None:
        super().__init__(auto_prefix=False)
        self.update, self.finish = update, finish
        self.loss_and_gradients = ms.value_and_grad(loss, None, weights)

    @ms.jit
    def construct(self, rate, eps, decay, step, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, PLR0913
        loss, gradients = self.loss_and_gradients(ids, labels, weights, positions, segments)
        gradients, scale, norm, loss = self.finish(gradients, loss)
        done = self.update(rate, eps, decay, step, gradients, scale, loss, norm)
        return ops.depend(loss, done), norm


class AddMicroBatch(nn.Cell):
    """Add the gradients of one micro-batch to their sums; return its loss."""

    def __init__(self, loss: TokenLoss, weights: ParameterTuple, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.add = AddGradients(sums, loss.model.kernels)
        self.loss_and_gradients = ms.value_and_grad(loss, None, weights)

    @ms.jit
    def construct(self, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        loss, gradients = self.loss_and_gradients(ids, labels, weights, positions, segments)
        return self.add(gradients, loss)


class ApplySums(nn.Cell):
    """Update the weights by the sums of gradients; return loss and norm.

    The sums themselves are the gradients: a copy of them would be a quarter more of all that a rank has.
    """

    def __init__(self, update: GuardedUpdate, sums: ParameterTuple, finish: Finish) -> None:
        super().__init__(auto_prefix=False)
        self.update, self.sums, self.finish = update, sums, finish

    @ms.jit
    def construct(self, rate, eps, decay, step, loss):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        gradients, scale, norm, loss = self.finish(self.sums, loss)
        done = self.update(rate, eps, decay, step, gradients, scale, loss, norm)
        return loss, ops.depend(norm, done)


class ClearSums(nn.Cell):
    """Set the sums to zero.

    This is a graph of its own: in one graph with the update MindSpore would copy what the update reads.
    """

    def __init__(self, sums: ParameterTuple, kernels: Kernels) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.kernels, self.each = sums, kernels, ops.HyperMap()
        self.done = Tensor(np.zeros(1, np.float32))

    @ms.jit
    def construct(self):  # type: ignore[no-untyped-def]  # noqa: ANN201
        return ops.depend(self.done * 1.0, self.each(self._clear, self.sums))

    def _clear(self, total):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.kernels.clear(total)


def make_gradient_sum(name: str, weight: Parameter) -> Parameter:
    """Return the sum, float32 zeros of the weight's shape, that micro-batches add their gradients to."""
    return Parameter(
        Tensor(np.zeros(weight.shape, np.float32)), name=f"accu_grads.{name}", requires_grad=False
    )
