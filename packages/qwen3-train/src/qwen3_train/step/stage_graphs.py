"""The graphs of a pipeline stage: forward, backward, and on the last stage both at once.

The backward pass of the other stages goes over pieces of the stage, the last one first. A piece begins with
an input that is kept from the forward graph: its forward pass is computed anew when the gradient of its
output is there. A layer that is recomputed whole is a piece of its own, so that it is computed only once
more; layers that are not make one piece together.

B batch, L length, M this rank's rows (B * L, of which sequence parallelism leaves it a share), D hidden.
"""

from itertools import pairwise
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from qwen3_model.network.kernels.seam import Plan
from qwen3_model.network.model import Qwen3ForCausalLM, positions_of
from qwen3_train.loss.loss import TokenLoss
from qwen3_train.step.recompute import is_recomputed
from qwen3_train.update.gradients import AddGradients


def kept_inputs(model: Qwen3ForCausalLM) -> tuple[bool, ...]:
    """Say for each layer of a stage whether a piece begins with it, so that its input is kept."""
    recomputed = [is_recomputed(layer) for layer in model.model.layers]
    return (True, *(before or own for before, own in pairwise(recomputed)))


def _pieces(model: Qwen3ForCausalLM, keeps: tuple[bool, ...]) -> list[list[nn.Cell]]:
    """Return the layers of each piece."""
    pieces: list[list[nn.Cell]] = []
    for layer, is_kept in zip(model.model.layers, keeps, strict=True):
        if is_kept:
            pieces.append([])
        pieces[-1].append(layer)
    return pieces


class _Piece(nn.Cell):
    """Layers one after the other."""

    def __init__(self, layers: list[nn.Cell]) -> None:
        super().__init__(auto_prefix=False)
        self.layers = nn.CellList(layers, auto_prefix=False)

    def construct(self, x_MD: Tensor, plan: Plan) -> Tensor:
        for layer in self.layers:
            x_MD = layer(x_MD, plan)
        return x_MD


class _Embed(nn.Cell):
    def __init__(self, model: Qwen3ForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.network = model.model

    def construct(self, ids_BL: Tensor) -> Tensor:
        return self.network.embed(ids_BL)


def _plan(network: Any, ids_BL: Tensor, position_ids_BL: Any, segment_ids_BL: Any) -> Plan:
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
    """The hidden states, then the inputs that are kept, but for the stage's own input."""

    def __init__(self, model: Qwen3ForCausalLM, keeps: tuple[bool, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.keeps = model.model, (keeps[0] and model.part.is_first, *keeps[1:])

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


class Backward(nn.Cell):
    """Add a stage's gradients to their sums; return that of its input, on the first stage a number.

    Of a stage that is not the last; `kept` are the inputs of its pieces.
    """

    def __init__(
        self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple, keeps: tuple[bool, ...]
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.is_first = model.model, model.part.is_first
        pieces = [_Piece(layers) for layers in _pieces(model, keeps)]
        self.pieces = nn.CellList(pieces, auto_prefix=False)
        self.embed = _Embed(model)
        places = {id(weight): place for place, weight in enumerate(weights)}
        own = [[w for w in piece.get_parameters() if id(w) in places] for piece in pieces]
        self.weights = tuple(ParameterTuple(each) for each in own)
        adds = [_adding(each, places, sums, model) for each in own]
        self.adds = nn.CellList(adds, auto_prefix=False)
        embedded = [w for w in weights if all(w is not each for part in own for each in part)]
        self.embedded = ParameterTuple(embedded)
        self.add_embedded = _adding(embedded, places, sums, model)
        # Below these nothing is trained, under adapters.
        trained = [i for i, each in enumerate(own) if each]
        self.lowest = 0 if embedded or not self.is_first else min(trained, default=0)
        self.of_both = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
        self.of_inputs = ops.GradOperation(get_all=True, sens_param=True)
        self.of_weights = ops.GradOperation(get_by_list=True, sens_param=True)
        self.done = Tensor(np.zeros(1, np.float32))

    @ms.jit
    def construct(self, grad_MD, ids_BL, position_ids_BL, segment_ids_BL, *kept):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN201
        plan = _plan(self.network, ids_BL, position_ids_BL, segment_ids_BL)
        for i in range(len(self.pieces) - 1, self.lowest - 1, -1):
            # Not before the gradient is there: all pieces at once would take the memory of all.
            x_MD = ops.depend(kept[i], grad_MD)
            if len(self.weights[i]) == 0:
                grad_MD = self.of_inputs(self.pieces[i])(x_MD, plan, grad_MD)[0]
            else:
                found = self.of_both(self.pieces[i], self.weights[i])(x_MD, plan, grad_MD)
                grad_MD = self.adds[i](found[1], found[0][0])
        if len(self.embedded) > 0:
            gradients = self.of_weights(self.embed, self.embedded)(ids_BL, grad_MD)
            return self.add_embedded(gradients, self.done * 1.0)
        return self.done * 1.0 if self.is_first else grad_MD


def _adding(
    weights: list[Any], places: dict[int, int], sums: ParameterTuple, model: Qwen3ForCausalLM
) -> AddGradients:
    return AddGradients(ParameterTuple([sums[places[id(weight)]] for weight in weights]), model.kernels)


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
