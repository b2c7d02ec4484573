"""The graphs of a pipeline stage: forward, backward, and on the last stage both at once.

Where a layer is recomputed whole, the forward graph also returns its output, which the backward graph takes
as an input of the next layer. So no layer has to run in order to know what the next one got, and each is
computed once more only, by its own recomputation.

B batch, L length, M this rank's rows (B * L, of which sequence parallelism leaves it a share), D hidden.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from qwen3_model.model import Qwen3ForCausalLM, positions_of
from qwen3_train.loss import TokenLoss
from qwen3_train.parallel.gradients import AddGradients
from qwen3_train.recompute import is_recomputed


def kept_inputs(model: Qwen3ForCausalLM) -> tuple[bool, ...]:
    """Say for each layer of a stage whether its input is kept from the forward to the backward pass.

    It is where what makes it, a layer that is recomputed or the embedding before one, would otherwise run
    for this input alone. The input of a stage after the first is there in any case.
    """
    recomputed = [is_recomputed(layer) for layer in model.model.layers]
    return (model.part.is_first and recomputed[0], *recomputed[:-1])


class _Rows(nn.Cell):
    """The stage's hidden states, out of its input and those inputs of layers that are given."""

    def __init__(self, model: Qwen3ForCausalLM, keeps: tuple[bool, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.replace = model.model, _Replace()
        self.slots = tuple(sum(keeps[:i]) if is_kept else -1 for i, is_kept in enumerate(keeps))

    def construct(self, x_MD, ids_BL, position_ids_BL, segment_ids_BL, *kept):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN202
        plan = _plan(self.network, ids_BL, position_ids_BL, segment_ids_BL)
        if x_MD is None:
            x_MD = self.network.embed(ids_BL)
        for i, layer in enumerate(self.network.layers):
            if self.slots[i] >= 0:
                x_MD = self.replace(x_MD, kept[self.slots[i]])
            x_MD = layer(x_MD, plan)
        return x_MD


class _FirstRows(nn.Cell):
    def __init__(self, model: Qwen3ForCausalLM, keeps: tuple[bool, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.rows = _Rows(model, keeps)

    def construct(self, ids_BL, position_ids_BL, segment_ids_BL, *kept):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN202
        return self.rows(None, ids_BL, position_ids_BL, segment_ids_BL, *kept)


class _Replace(nn.Cell):
    """Take what is known to be equal in place of what is computed, with the latter's gradient."""

    def construct(self, computed_MD: Tensor, known_MD: Tensor) -> Tensor:
        return known_MD

    def bprop(self, computed_MD: Tensor, known_MD: Tensor, out_MD: Tensor, grad_MD: Tensor) -> tuple:
        # Nothing asks for the second gradient; it must only have the form.
        return grad_MD, grad_MD


def _plan(network: Any, ids_BL: Tensor, position_ids_BL: Any, segment_ids_BL: Any) -> Any:
    if position_ids_BL is None:
        position_ids_BL = positions_of(ids_BL)
    return network.plan(position_ids_BL, segment_ids_BL)


class _LossOfRows(nn.Cell):
    def __init__(self, loss: TokenLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, x_MD, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.loss(ids, labels, weights, positions, segments, x_MD)


class Forward(nn.Cell):
    """The hidden states, then the inputs that are kept."""

    def __init__(self, model: Qwen3ForCausalLM, keeps: tuple[bool, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.keeps = model.model, keeps

    @ms.jit
    def construct(self, x_MD, ids_BL, position_ids_BL=None, segment_ids_BL=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        plan = _plan(self.network, ids_BL, position_ids_BL, segment_ids_BL)
        if x_MD is None:
            x_MD = self.network.embed(ids_BL)
        kept: tuple[Any, ...] = ()
        for i, layer in enumerate(self.network.layers):
            if self.keeps[i]:
                kept = (*kept, x_MD)
            x_MD = layer(x_MD, plan)
        return (x_MD, *kept)


class LossOnly(nn.Cell):
    """The loss of the last stage's hidden states."""

    def __init__(self, loss: TokenLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = _LossOfRows(loss)

    @ms.jit
    def construct(self, x_MD, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return self.loss(x_MD, ids, labels, weights, positions, segments)


class FirstBackward(nn.Cell):
    """Add the first stage's gradients to their sums."""

    def __init__(
        self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple, keeps: tuple[bool, ...]
    ) -> None:
        super().__init__(auto_prefix=False)
        self.add, self.rows, self.weights = (
            AddGradients(sums, model.kernels),
            _FirstRows(model, keeps),
            weights,
        )
        self.gradient = ops.GradOperation(get_by_list=True, sens_param=True)
        self.done = Tensor(np.zeros(1, np.float32))

    @ms.jit
    def construct(self, grad_MD, ids_BL, position_ids_BL, segment_ids_BL, *kept):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN201
        gradient = self.gradient(self.rows, self.weights)
        gradients = gradient(ids_BL, position_ids_BL, segment_ids_BL, *kept, grad_MD)
        return self.add(gradients, self.done * 1.0)


class MiddleBackward(nn.Cell):
    """Add a middle stage's gradients to their sums; return that of its input."""

    def __init__(
        self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple, keeps: tuple[bool, ...]
    ) -> None:
        super().__init__(auto_prefix=False)
        self.add, self.rows, self.weights = AddGradients(sums, model.kernels), _Rows(model, keeps), weights
        self.all_gradients = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

    @ms.jit
    def construct(self, x_MD, grad_MD, ids_BL, position_ids_BL, segment_ids_BL, *kept):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN201
        gradient = self.all_gradients(self.rows, self.weights)
        input_gradients, gradients = gradient(x_MD, ids_BL, position_ids_BL, segment_ids_BL, *kept, grad_MD)
        return self.add(gradients, input_gradients[0])


class LastBackward(nn.Cell):
    """Add the last stage's gradients to their sums; return the loss and the gradient of its input."""

    def __init__(self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.add = AddGradients(sums, model.kernels)
        self.loss_and_gradients = ms.value_and_grad(_LossOfRows(TokenLoss(model)), 0, weights)

    @ms.jit
    def construct(self, x_MD, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        loss, (input_grad_MD, gradients) = self.loss_and_gradients(
            x_MD, ids, labels, weights, positions, segments
        )
        return self.add(gradients, loss), input_grad_MD
