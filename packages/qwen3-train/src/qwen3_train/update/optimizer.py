"""AdamW as torch computes it, through the device's kernel, and what clipping by the global norm needs.

Norm weights do not decay, matrices and the embedding do: the rule of mindformers and of Megatron.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from qwen3_model.network.kernels.seam import Kernels, Scalar
from qwen3_train.settings.adam import AdamSettings

Item = TypeVar("Item")
BLOCK = 12
"""Weights that are updated side by side: about a layer's."""


class AdamW(nn.Cell):
    """Hold the moments of `weights` and update all of them.

    The largest come last: most gradients are gone by then.

    Args of the call:
        rate, eps, decay, step: From `adam_scalars`.
        gradients: One per weight, float32.
        scale: float32 scalar that they are multiplied by, each just before its own update; or None.
    """

    def __init__(
        self,
        weights: Mapping[str, Parameter],
        settings: AdamSettings,
        kernels: Kernels,
        stays: Sequence[bool] | None = None,
    ) -> None:
        """Make moments of zeros.

        Args:
            weights: By name.
            settings: AdamW's settings.
            kernels: The device's kernels.
            stays: For each weight whether its gradient is a tensor that stays, such as a sum over
                micro-batches, and may be overwritten; for none when left out.
        """
        super().__init__(auto_prefix=False)
        self.kernels = kernels
        self.weights = ParameterTuple(list(weights.values()))
        self.m = ParameterTuple([_moment(f"adam_m.{name}", weight) for name, weight in weights.items()])
        self.v = ParameterTuple([_moment(f"adam_v.{name}", weight) for name, weight in weights.items()])
        self.decays = tuple(len(weight.shape) > 1 for weight in weights.values())
        self.betas = settings.beta1, settings.beta2
        self.stays = (False,) * len(weights) if stays is None else tuple(stays)
        sizes = [weight.size for weight in weights.values()]
        order = sorted(range(len(sizes)), key=lambda i: sizes[i])
        self.blocks = tuple(tuple(order[first : first + BLOCK]) for first in range(0, len(order), BLOCK))
        # A loop nests each turn in the one before: a turn for each weight of a deep model would take several
        # times as long to compile, then exceed MindSpore's depth of calls.
        self.each = ops.HyperMap()

    def construct(
        self,
        rate: Scalar,
        eps: Scalar,
        decay: Scalar,
        step: Tensor,
        gradients: tuple[Tensor, ...],
        scale: Tensor | None = None,
    ) -> Tensor:
        done = step
        for block in self.blocks:
            # One block after the other: all scaled gradients at once take as much memory as the model.
            own_scale = None if scale is None else ops.depend(scale, done)
            update = ops.partial(self._update_one, rate, eps, decay, step, own_scale)
            updated = self.each(
                update,
                _choose_items(self.decays, block),
                _choose_items(self.stays, block),
                _choose_items(self.weights, block),
                _choose_items(self.m, block),
                _choose_items(self.v, block),
                _choose_items(gradients, block),
            )
            done = ops.depend(step, updated)
        return done

    def _update_one(  # noqa: PLR0913
        self,
        rate: Scalar,
        eps: Scalar,
        decay: Scalar,
        step: Tensor,
        scale: Tensor | None,
        is_decayed: bool,
        stays: bool,
        weight: Tensor,
        m: Tensor,
        v: Tensor,
        gradient: Tensor,
    ) -> Tensor:
        own_decay = decay if is_decayed else None
        if scale is not None and stays:
            gradient, scale = self.kernels.scale(gradient, scale), None
        return self.kernels.adamw(weight, m, v, gradient, rate, eps, own_decay, step, self.betas, scale)


def _choose_items(each: Sequence[Item], block: tuple[int, ...]) -> tuple[Item, ...]:
    """Return the items whose indices a block lists, in its order."""
    chosen: tuple[Item, ...] = ()
    for i in block:
        chosen = (*chosen, each[i])
    return chosen


class SumOfSquares(nn.Cell):
    """Return the sum of squares over the elements of those tensors that count, float32 of one element."""

    def __init__(self, counts: Sequence[bool], kernels: Kernels) -> None:
        super().__init__(auto_prefix=False)
        self.counts, self.kernels = tuple(counts), kernels
        self.each, self.nothing = ops.HyperMap(), Tensor([0.0], ms.float32)

    def construct(self, tensors: tuple[Tensor, ...]) -> Tensor:
        return self.kernels.add_all(self.each(self._square, self.counts, tensors))

    def _square(self, is_counted: bool, tensor: Tensor) -> Tensor:
        return self.kernels.sum_of_squares(tensor) if is_counted else self.nothing


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


def adam_scalars(kernels: Kernels, settings: AdamSettings, lr: float, step: int) -> tuple[Scalar, ...]:
    """Return what the update of a step, counted from 1, takes first; a new value compiles nothing anew."""
    betas = settings.beta1, settings.beta2
    return kernels.adam_scalars(lr, step, settings.eps, settings.weight_decay, betas)


def _moment(name: str, weight: Parameter) -> Parameter:
    return Parameter(Tensor(np.zeros(weight.shape, np.float32)), name=name, requires_grad=False)
