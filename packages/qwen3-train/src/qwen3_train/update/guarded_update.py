"""The optimizer's update, which a step without a usable gradient leaves out.

The decision is the device's: gradients need not wait for the host, and one graph has the whole step. Loss and
norm are those of all ranks, so that all decide alike.
"""

import math

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from qwen3_model.network.kernels.seam import Scalar
from qwen3_train.settings.skip import SkipSettings


class GuardedUpdate(nn.Cell):
    """Call an optimizer if the loss is a number and the norm below the limit; without `skip` in any case.

    Args of the call: the optimizer's, then loss and norm, float32 scalars.
    """

    def __init__(self, adam: nn.Cell, skip: SkipSettings | None) -> None:
        super().__init__(auto_prefix=False)
        self.adam, self.limit = adam, None if skip is None else skip.norm_limit

    def construct(  # noqa: PLR0913
        self,
        rate: Scalar,
        eps: Scalar,
        decay: Scalar,
        step: Tensor,
        gradients: tuple[Tensor, ...],
        scale: Tensor | None,
        loss: Tensor,
        norm: Tensor,
    ) -> Tensor:
        if self.limit is None:
            return self.adam(rate, eps, decay, step, gradients, scale)
        # A branch and no factor of 0, which would leave NaN as it is. NaN is not below anything.
        if ops.logical_and(norm < self.limit, ops.isfinite(loss)):
            done = self.adam(rate, eps, decay, step, gradients, scale)
        else:
            done = step
        return done


def is_applied(skip: SkipSettings | None, loss: float, norm: float) -> bool:
    """Say on the host what `GuardedUpdate` has decided."""
    return skip is None or (math.isfinite(loss) and norm < float(np.float32(skip.norm_limit)))


def clear(total: Parameter) -> None:
    """Set a sum of gradients to zero on the host, whatever it holds; a compiled graph sees it."""
    ops.assign(total, Tensor(np.zeros(total.shape, np.float32)))
