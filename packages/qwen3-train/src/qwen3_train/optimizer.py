"""AdamW as torch computes it, through the device's kernel, and what clipping by the global norm needs.

Norm weights do not decay, matrices and the embedding do: the rule of mindformers and of Megatron.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from qwen3_model.layers import Kernels
from qwen3_train.settings.adam import AdamSettings

BLOCK = 12
"""Weights that are updated side by side: about a layer's."""
# Before 2.9 MindSpore's product adds up a row in one go, and is 1e-5 off from some 50,000 elements on; since
# then it does so in blocks, and many short rows take eight times as long as a few long ones.
SUMS_IN_BLOCKS = tuple(int(part) for part in ms.__version__.split(".")[:2]) >= (2, 9)
MAX_ROW = 4 << 20 if SUMS_IN_BLOCKS else 16 << 10


class AdamW(nn.Cell):
    """Hold the moments of `weights` and update all of them.

    Args of the call:
        rate, eps, decay: float32 scalars from `AdamSettings.scalars`.
        gradients: One per weight, float32.
        scale: float32 scalar that they are multiplied by, each just before its own update; or None.
    """

    def __init__(self, weights: Mapping[str, Parameter], settings: AdamSettings, kernels: Kernels) -> None:
        super().__init__(auto_prefix=False)
        self.kernels = kernels
        self.weights = ParameterTuple(list(weights.values()))
        self.m = ParameterTuple([_moment(f"adam_m.{name}", weight) for name, weight in weights.items()])
        self.v = ParameterTuple([_moment(f"adam_v.{name}", weight) for name, weight in weights.items()])
        self.decays = tuple(len(weight.shape) > 1 for weight in weights.values())
        self.betas = settings.beta1, settings.beta2
        # A loop nests each turn in the one before: a turn for each weight of a deep model would take several
        # times as long to compile, then exceed MindSpore's depth of calls.
        self.each = ops.HyperMap()

    def construct(
        self,
        rate: Tensor,
        eps: Tensor,
        decay: Tensor,
        gradients: tuple[Tensor, ...],
        scale: Tensor | None = None,
    ) -> Tensor:
        done = rate
        for first in range(0, len(gradients), BLOCK):
            end = first + BLOCK
            # One block after the other: all scaled gradients at once take as much memory as the model.
            own_scale = None if scale is None else ops.depend(scale, done)
            update = ops.partial(self._update_one, ops.depend(rate, done), eps, decay, own_scale)
            updated = self.each(
                update,
                self.decays[first:end],
                self.weights[first:end],
                self.m[first:end],
                self.v[first:end],
                gradients[first:end],
            )
            done = ops.depend(rate, updated)
        return done

    def _update_one(  # noqa: PLR0913
        self,
        rate: Tensor,
        eps: Tensor,
        decay: Tensor,
        scale: Tensor | None,
        is_decayed: bool,
        weight: Tensor,
        m: Tensor,
        v: Tensor,
        gradient: Tensor,
    ) -> Any:
        own_decay = decay if is_decayed else None
        own_gradient = gradient if scale is None else gradient * scale
        return self.kernels.adamw(weight, m, v, own_gradient, rate, eps, own_decay, self.betas)


class SumOfSquares(nn.Cell):
    """Add up the squares of all elements of those tensors whose place is counted, float32 of one element."""

    def __init__(self, counts: Sequence[bool]) -> None:
        super().__init__(auto_prefix=False)
        self.counts = tuple(counts)
        # The product of a row with itself sums squares without a temporary and, unlike L2Loss, exactly.
        self.dot = ops.BatchMatMul(transpose_b=True)
        self.each, self.add, self.nothing = ops.HyperMap(), ops.AddN(), Tensor([0.0], ms.float32)

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        return self.add(self.each(self._square, self.counts, tensors))

    def _square(self, is_counted: bool, tensor: Tensor) -> Tensor:
        if not is_counted:
            return self.nothing
        rows = tensor.reshape(num_rows(tensor.size), 1, -1)
        return self.dot(rows, rows).sum().reshape(-1)


def num_rows(size: int, max_row: int = MAX_ROW) -> int:
    """Return into how many equal rows to cut elements whose squares are summed in float32, row by row.

    One row of 156 million normal numbers, the embedding of Qwen3-0.6B, comes out 4% short on a CPU; in rows
    of up to `max_row` the sum is within 1e-6, or 2e-5 where all are equal.
    """
    rows = 1
    while size > rows * max_row and size % (2 * rows) == 0:
        rows *= 2
    return rows


class ClipScale(nn.Cell):
    """Return the factor that brings gradients of a norm to at most `max_norm`, or None without `max_norm`.

    It is max_norm / (norm + 1e-6) as in torch, never above 1.
    """

    def __init__(self, max_norm: float | None) -> None:
        super().__init__(auto_prefix=False)
        self.max_norm = max_norm
        self.one = Tensor(1.0, ms.float32)

    def construct(self, norm: Tensor) -> Tensor | None:
        if self.max_norm is None:
            return None
        return ops.minimum(self.max_norm / (norm + 1e-6), self.one)


def adam_scalars(settings: AdamSettings, lr: float, step: int) -> list[Tensor]:
    """Return `settings.scalars` as tensors, so that a new value compiles nothing anew."""
    return [Tensor(np.float32(value)) for value in settings.scalars(lr, step)]


def _moment(name: str, weight: Any) -> Parameter:
    return Parameter(Tensor(np.zeros(weight.shape, np.float32)), name=name, requires_grad=False)
