"""The compiled graphs of a pipeline stage: forward, backward, and on the last stage both at once.

The backward graph of a stage that is not the last goes over blocks of layers, the last block first. The input
of each block is kept from the forward graph; the block's forward pass is computed anew once the gradient of
its output is there. A layer that is recomputed whole is a block of its own, so that it is computed only once
more; neighbouring layers that are not recomputed make one block together.

MindSpore differentiates cells, so the parts of a stage that have a gradient of their own are wrapped as
cells: `_Embed`, `_Block` and `_LossOfRows`.

B batch, L length, M this rank's rows (B * L, of which sequence parallelism leaves it a share), D hidden.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from qwen3_model.network.kernels.seam import Kernels, Plan, Segments
from qwen3_model.network.model import Qwen3ForCausalLM, positions_of
from qwen3_train.loss.loss import TokenLoss
from qwen3_train.step.recompute import is_recomputed
from qwen3_train.update.gradients import AddGradients


def kept_inputs(model: Qwen3ForCausalLM) -> tuple[bool, ...]:
    """Return for each layer of a stage whether a block begins with it, so that its input is kept."""
    recomputed = [is_recomputed(layer) for layer in model.model.layers]
    return (True, *(before or own for before, own in pairwise(recomputed)))


def _group_layers(model: Qwen3ForCausalLM, keeps: tuple[bool, ...]) -> list[list[nn.Cell]]:
    """Return the layers of each block."""
    blocks: list[list[nn.Cell]] = []
    for layer, begins_block in zip(model.model.layers, keeps, strict=True):
        if begins_block:
            blocks.append([])
        blocks[-1].append(layer)
    return blocks


class _Block(nn.Cell):
    """Neighbouring layers of a stage, one after the other."""

    def __init__(self, layers: list[nn.Cell]) -> None:
        super().__init__(auto_prefix=False)
        self.layers = nn.CellList(layers, auto_prefix=False)

    def construct(self, x_MD: Tensor, plan: Plan) -> Tensor:
        for layer in self.layers:
            x_MD = layer(x_MD, plan)
        return x_MD


class _Embed(nn.Cell):
    """The embedding of the first stage, as a cell that can be differentiated alone."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        super().__init__(auto_prefix=False)
        self.network = model.model

    def construct(self, ids_BL: Tensor) -> Tensor:
        return self.network.embed(ids_BL)


def _make_plan(
    network: nn.Cell, ids_BL: Tensor, position_ids_BL: Tensor | None, segment_ids_BL: Segments | None
) -> Plan:
    """Return the plan of all layers; positions count from 0 in each row where none are given."""
    if position_ids_BL is None:
        position_ids_BL = positions_of(ids_BL)
    return network.plan(position_ids_BL, segment_ids_BL)


class _LossOfRows(nn.Cell):
    """The loss with hidden states as its first argument, where `value_and_grad` looks for its input."""

    def __init__(self, loss: TokenLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, x_MD, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.loss(ids, labels, weights, positions, segments, x_MD)


class Forward(nn.Cell):
    """Return a stage's hidden states, then the inputs of its blocks, apart from the stage's own input."""

    def __init__(self, model: Qwen3ForCausalLM, keeps: tuple[bool, ...]) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.keeps = model.model, (keeps[0] and model.part.is_first, *keeps[1:])

    @ms.jit
    def construct(self, x_MD, ids_BL, position_ids_BL=None, segment_ids_BL=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        plan = _make_plan(self.network, ids_BL, position_ids_BL, segment_ids_BL)
        if x_MD is None:
            x_MD = self.network.embed(ids_BL)
        kept: tuple[Tensor, ...] = ()
        for i, layer in enumerate(self.network.layers):
            if self.keeps[i]:
                kept = (*kept, x_MD)
            x_MD = layer(x_MD, plan)
        return (x_MD, *kept)


class LastForward(nn.Cell):
    """Return the loss of the last stage, without gradients."""

    def __init__(self, loss: TokenLoss) -> None:
        super().__init__(auto_prefix=False)
        self.loss = _LossOfRows(loss)

    @ms.jit
    def construct(self, x_MD, ids, labels, weights, positions=None, segments=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        return self.loss(x_MD, ids, labels, weights, positions, segments)


class Backward(nn.Cell):
    """Add the gradients of a stage that is not the last to their sums; return the gradient of its input.

    The first stage has no such gradient and returns a number in its stead. `kept` of the call are the inputs
    of the blocks.
    """

    def __init__(
        self, model: Qwen3ForCausalLM, weights: ParameterTuple, sums: ParameterTuple, keeps: tuple[bool, ...]
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network, self.is_first = model.model, model.part.is_first
        blocks = [_Block(layers) for layers in _group_layers(model, keeps)]
        self.blocks = nn.CellList(blocks, auto_prefix=False)
        self.embed = _Embed(model)
        sum_of = {id(weight): total for weight, total in zip(weights, sums, strict=True)}
        in_block = [[w for w in block.get_parameters() if id(w) in sum_of] for block in blocks]
        self.weights = tuple(ParameterTuple(each) for each in in_block)
        adds = [_make_add(each, sum_of, model.kernels) for each in in_block]
        self.adds = nn.CellList(adds, auto_prefix=False)
        embedded = [w for w in weights if all(w is not each for part in in_block for each in part)]
        self.embedded = ParameterTuple(embedded)
        self.add_embedded = _make_add(embedded, sum_of, model.kernels)
        # Under adapters, nothing below this block may be trained.
        trained = [i for i, each in enumerate(in_block) if each]
        self.lowest = 0 if embedded or not self.is_first else min(trained, default=0)
        self.of_both = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
        self.of_inputs = ops.GradOperation(get_all=True, sens_param=True)
        self.of_weights = ops.GradOperation(get_by_list=True, sens_param=True)
        self.done = Tensor(np.zeros(1, np.float32))

    @ms.jit
    def construct(self, grad_MD, ids_BL, position_ids_BL, segment_ids_BL, *kept):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN201
        plan = _make_plan(self.network, ids_BL, position_ids_BL, segment_ids_BL)
        for i in range(len(self.blocks) - 1, self.lowest - 1, -1):
            # Not before the gradient is there: all blocks at once would take the memory of all.
            x_MD = ops.depend(kept[i], grad_MD)
            if len(self.weights[i]) == 0:
                grad_MD = self.of_inputs(self.blocks[i])(x_MD, plan, grad_MD)[0]
            else:
                found = self.of_both(self.blocks[i], self.weights[i])(x_MD, plan, grad_MD)
                grad_MD = self.adds[i](found[1], found[0][0])
        if len(self.embedded) > 0:
            gradients = self.of_weights(self.embed, self.embedded)(ids_BL, grad_MD)
            return self.add_embedded(gradients, self.done * 1.0)
        return self.done * 1.0 if self.is_first else grad_MD


def _make_add(
    weights: Sequence[Parameter], sum_of: Mapping[int, Parameter], kernels: Kernels
) -> AddGradients:
    """Return what adds gradients of `weights` to their sums, which `sum_of` finds by the weight's id()."""
    return AddGradients(ParameterTuple([sum_of[id(weight)] for weight in weights]), kernels)


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
