"""AdamW as torch computes it, through MindSpore's fast kernel, and clipping by the global norm.

Norm weights do not decay, matrices and the embedding do: the rule of mindformers and of Megatron.
"""

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from qwen3_train.adam_settings import AdamSettings


class AdamW(nn.Cell):
    """Hold the moments of `weights` and update all of them.

    Args of the call:
        rate, eps, decay: float32 scalars from `AdamSettings.scalars`.
        gradients: One per weight, float32.
    """

    def __init__(self, weights: Mapping[str, Parameter], settings: AdamSettings) -> None:
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple(list(weights.values()))
        self.m = ParameterTuple([_moment(f"adam_m.{name}", weight) for name, weight in weights.items()])
        self.v = ParameterTuple([_moment(f"adam_v.{name}", weight) for name, weight in weights.items()])
        self.decays = tuple(len(weight.shape) > 1 for weight in weights.values())
        self.beta1, self.beta2 = settings.beta1, settings.beta2
        self.update = ops.AdamWeightDecay()
        self.no_decay = Tensor(0.0, ms.float32)

    def construct(self, rate: Tensor, eps: Tensor, decay: Tensor, gradients: tuple[Tensor, ...]) -> Tensor:
        done = rate
        for i in range(len(self.weights)):
            own_decay = decay if self.decays[i] else self.no_decay
            updated = self.update(
                self.weights[i], self.m[i], self.v[i],
                rate, self.beta1, self.beta2, eps, own_decay, gradients[i],
            )  # fmt: skip
            done = ops.depend(done, updated)
        return done


class ClipByGlobalNorm(nn.Cell):
    """Scale gradients so that their common norm is at most `max_norm`; return them and the norm before.

    The scale is max_norm / (norm + 1e-6) as in torch, never above 1; without `max_norm` only the norm is
    taken.
    """

    def __init__(self, max_norm: float | None) -> None:
        super().__init__(auto_prefix=False)
        self.max_norm = max_norm
        # The product of a row with itself sums squares without a temporary and, unlike L2Loss, exactly.
        self.dot = ops.MatMul(transpose_b=True)

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        total: Any = 0.0
        for gradient in gradients:
            row = gradient.reshape(1, -1)
            total = total + self.dot(row, row)
        norm = ops.sqrt(total.reshape(()))
        if self.max_norm is None:
            return gradients, norm
        scale = ops.minimum(self.max_norm / (norm + 1e-6), Tensor(1.0, ms.float32))
        clipped: tuple[Tensor, ...] = ()
        for gradient in gradients:
            clipped = (*clipped, gradient * scale)
        return clipped, norm


def adam_scalars(settings: AdamSettings, lr: float, step: int) -> list[Tensor]:
    """Return `settings.scalars` as tensors, so that a new value compiles nothing anew."""
    return [Tensor(np.float32(value)) for value in settings.scalars(lr, step)]


def _moment(name: str, weight: Any) -> Parameter:
    return Parameter(Tensor(np.zeros(weight.shape, np.float32)), name=name, requires_grad=False)
