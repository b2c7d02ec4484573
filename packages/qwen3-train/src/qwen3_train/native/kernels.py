"""The portable kernels with AdamW and the sum of a tied embedding's gradients in C++."""

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from qwen3_model.network.kernels.portable import PortableKernels

ONE, NOTHING = Tensor(np.ones(1, np.float32)), Tensor(np.zeros(1, np.float32))


@ms.jit_class
class NativeTrainingKernels(PortableKernels):
    """Update a weight in one pass over memory, and add rows to a gradient where it lies."""

    def __init__(self, library: Path) -> None:
        """Take the functions of `library`, which `native_library` has made."""
        super().__init__()

        def function(name: str) -> ops.Custom:
            made = ops.Custom(f"{library}:{name}", lambda *_: (1,), lambda *_: ms.float32, func_type="aot")
            # Keeps it in order with what reads and writes the same parameters.
            made.add_prim_attr("side_effect_mem", True)
            return made

        self._adamw, self._add_rows = function("qwen3_adamw"), function("qwen3_add_rows")

    def adamw(  # noqa: PLR0913
        self,
        weight: Parameter,
        m: Parameter,
        v: Parameter,
        gradient: Tensor,
        rate: Tensor,
        eps: Tensor,
        decay: Tensor | None,
        step: Tensor,
        betas: tuple[float, float],
        scale: Tensor | None = None,
    ) -> Tensor:
        """Update a weight and its moments in place, see `PortableKernels.adamw`."""
        share = NOTHING if decay is None else (rate * decay).reshape(-1)
        factor = ONE if scale is None else scale.reshape(-1)
        # Behind whatever the number of the step waits for.
        rate = ops.depend(rate, step)
        return self._adamw(weight, m, v, gradient, rate, eps, share, factor, Tensor(betas, ms.float32))

    def add_rows(self, table_VD: Tensor, ids_M: Tensor, rows_MD: Tensor) -> Tensor:
        """Add each row to the table's row of its id, in place."""
        return ops.depend(table_VD, self._add_rows(table_VD, ids_M, rows_MD))
