"""The layers without attention, under the names that the released weights carry.

M rows (batch * length), B batch, L length, D width, O output width, V vocabulary, F feed-forward.
"""

import mindspore as ms
from mindspore import Parameter, Tensor, mint, nn
from mindspore.common.initializer import Zero, initializer

from qwen3_model.config import Qwen3Config
from qwen3_model.network.kernels.seam import Kernels
from qwen3_model.ranks.shards import Tp


def make_parameter(shape: tuple[int, ...], dtype: ms.Type) -> Parameter:
    """Return a weight of zeros, to be filled by `loading` before the first call."""
    # Takes memory only when `loading`, or the first call, touches it.
    return Parameter(initializer(Zero(), shape, dtype), name="weight")


class Linear(nn.Cell):
    """Multiply by a weight of (outputs, inputs); Qwen3 has no bias anywhere."""

    def __init__(self, num_inputs: int, num_outputs: int, kernels: Kernels, dtype: ms.Type) -> None:
        super().__init__()
        self.kernels = kernels
        self.weight = make_parameter((num_outputs, num_inputs), dtype)

    def construct(self, x_MD: Tensor) -> Tensor:
        return self.kernels.linear(x_MD, self.weight)

    def products(self, x_MD: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return what is multiplied, and by what, for a caller that takes the rows in chunks."""
        return (x_MD,), (self.weight,)

    def product_weights(self) -> tuple[Parameter, ...]:
        """Return the weights behind the second part of `products`."""
        return (self.weight,)


class LookUp(nn.Cell):
    """A row per id; with tensor parallelism each rank has its share of the vocabulary."""

    def __init__(self, num_rows: int, tp: Tp) -> None:
        """Take the number of rows that this rank has."""
        super().__init__()
        self.num_rows, self.tp = num_rows, tp

    def construct(self, ids_M: Tensor) -> Tensor:
        if self.tp.size == 1:
            return self.look_up(ids_M)
        rows_M = ids_M - self.tp.index * self.num_rows
        is_here_M = mint.logical_and(rows_M >= 0, rows_M < self.num_rows)
        x_MD = self.look_up(rows_M * is_here_M.astype(ms.int32))
        # What another rank has counts as zero, and row 0, which stands in for it, gets no gradient.
        return self.tp.leave(x_MD * is_here_M.astype(x_MD.dtype).expand_dims(1))

    def look_up(self, rows_M: Tensor) -> Tensor:
        """Return rows that are here."""
        raise NotImplementedError


class Embedding(LookUp):
    """Rows of a weight."""

    def __init__(self, num_rows: int, width: int, kernels: Kernels, dtype: ms.Type, tp: Tp) -> None:
        super().__init__(num_rows // tp.size, tp)
        self.kernels = kernels
        self.weight = make_parameter((self.num_rows, width), dtype)

    def look_up(self, rows_M: Tensor) -> Tensor:
        return self.kernels.embed(self.weight, rows_M)

    def project(self, hidden_MD: Tensor) -> Tensor:
        """Return the logits that the weight gives as the head of a tied model."""
        return self.kernels.linear(hidden_MD, self.weight)

    def products(self, hidden_MD: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the same as the product that it is, see `Linear.products`."""
        return (hidden_MD,), (self.weight,)

    def product_weights(self) -> tuple[Parameter, ...]:
        """Return the weights behind the second part of `products`."""
        return (self.weight,)


class RMSNorm(nn.Cell):
    """Scale each row to unit root mean square, then by a weight."""

    def __init__(self, width: int, eps: float, kernels: Kernels, dtype: ms.Type) -> None:
        super().__init__()
        self.kernels, self.eps = kernels, eps
        self.weight = make_parameter((width,), dtype)

    def construct(self, x_MD: Tensor) -> Tensor:
        return self.kernels.rms_norm(x_MD, self.weight, self.eps)


class MLP(nn.Cell):
    """The gated feed-forward layer: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Qwen3Config, kernels: Kernels, dtype: ms.Type, tp: Tp) -> None:
        super().__init__()
        self.kernels, self.tp = kernels, tp
        width = config.intermediate_size // tp.size
        self.gate_proj = Linear(config.hidden_size, width, kernels, dtype)
        self.up_proj = Linear(config.hidden_size, width, kernels, dtype)
        self.down_proj = Linear(width, config.hidden_size, kernels, dtype)

    def construct(self, x_MD: Tensor) -> Tensor:
        x_MD = self.tp.enter(x_MD)
        return self.tp.leave(self.down_proj(self.kernels.swiglu(self.gate_proj(x_MD), self.up_proj(x_MD))))
