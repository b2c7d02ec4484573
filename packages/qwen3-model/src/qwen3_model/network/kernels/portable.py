"""The one seam between devices: the few operations that an accelerator has fused and a CPU has not.

`PortableKernels` is plain mathematics in float32 and runs everywhere; `ascend_kernels` has the same methods
and calls MindSpore's fused operators.

Each has a `plan`, made once a call and handed to every layer: what positions and mask come to on that device.

B batch, L query length, S key length, N query heads, K key/value heads, G = N / K, H head_dim,
F feed-forward, V vocabulary, M rows (B * L), R head rows (B * L * N), D width.
"""

import math
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, ops

from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.network.cache import KVCache, write_and_read
from qwen3_model.network.kernels.ascend import AscendKernels
from qwen3_model.network.kernels.portable_ops import OrderRows, RmsNorm, Softmax, num_rows

__all__ = ["AscendKernels", "PortableKernels", "make_kernels"]

# Adding this hides a key; it is finite so that a query which sees nothing gives a mean and not NaN.
HIDDEN = -1e30


@ms.jit_class
class PortableKernels:
    """Plain mathematics in float32 that broadcasts and transposes no large tensor (see `portable_ops`)."""

    compute_dtype = residual_dtype = ms.float32
    clears_nan = False

    def __init__(self) -> None:
        # These primitives are several times faster on a CPU than mint's matmul, split and cat.
        self._matmul = ops.MatMul(transpose_b=True)
        self._scores = ops.BatchMatMul(transpose_b=True)
        self._weighted = ops.BatchMatMul()
        self._halves = ops.Split(-1, 2)
        self._join = ops.Concat(-1)
        self._add_row = ops.BiasAdd()
        self._rms_norm, self._softmax, self._order_rows = RmsNorm(), Softmax(), OrderRows()
        self._adam, self._descend = ops.Adam(), ops.ApplyGradientDescent()
        self._shift, self._xor = ops.RightShift(), ops.BitwiseXor()
        self._fifteen = Tensor(np.full(1, 15, np.int32))
        self._assign, self._assign_add, self._add_all = ops.Assign(), ops.AssignAdd(), ops.AddN()

    def make_cache(self, config: Qwen3Config, num_rows: int, capacity: int) -> KVCache:
        """Return room for `capacity` tokens in each of `num_rows` rows."""
        return KVCache(config, num_rows, capacity, self.compute_dtype)

    def embed(self, weight_VD: Tensor, ids_M: Tensor) -> Tensor:
        """Return the row of each id."""
        return ops.gather(weight_VD, ids_M, 0).astype(self.compute_dtype)

    def pick(self, x_MD: Tensor, rows_R: Tensor) -> Tensor:
        """Return those rows."""
        return ops.gather(x_MD, rows_R, 0)

    def columns(self, weight_RV: Tensor, ids_M: Tensor) -> Tensor:
        """Return the column of each id, (R, M)."""
        return ops.gather(weight_RV, ids_M, 1)

    def linear(self, x_MD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply each row by the transpose of the weight, which stays where it is."""
        return self._matmul(x_MD, weight_OD.astype(x_MD.dtype))

    def rms_norm(self, x_MD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Scale each row to unit root mean square, then by the weight (Zhang and Sennrich 2019, eq. 4)."""
        return self._rms_norm(x_MD, weight_D.astype(x_MD.dtype), eps)

    def swiglu(self, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
        """Return silu(gate) * up (Shazeer 2020)."""
        return mint.nn.functional.silu(gate_MF) * up_MF

    def plan(
        self, cos_BLH: Tensor, sin_BLH: Tensor, visible_BLS: Tensor | None, num_heads: int, num_kv_heads: int
    ) -> tuple:
        """Return what every layer needs: sizes, the turns of queries and keys, the mask, the orders of rows.

        The tables have H/2 entries. `visible_BLS` says which keys a query sees; None is the causal order.
        """
        b, length = cos_BLH.shape[0], cos_BLH.shape[1]
        turns = self._turns(cos_BLH, sin_BLH, num_heads), self._turns(cos_BLH, sin_BLH, num_kv_heads)
        mask = self._mask(visible_BLS, length, length, num_heads)
        q_orders = swapped_rows(b, length, num_heads), swapped_rows(b, num_heads, length)
        k_orders = swapped_rows(b, length, num_kv_heads), swapped_rows(b, num_kv_heads, length)
        return (b, num_kv_heads), turns, mask, q_orders, k_orders

    def segments(self, ids_BL: np.ndarray) -> Tensor:
        """Return what a graph takes for documents kept apart: each token's document, (B, L)."""
        return Tensor(ids_BL)

    def rotate_queries(self, q_RH: Tensor, plan: Any) -> Tensor:
        """Turn pair i = (x[i], x[i + H/2]) of each query head by its angle (Su et al. 2021, eq. 34)."""
        return self._rotate(q_RH, plan[1][0])

    def rotate_keys(self, k_RH: Tensor, plan: Any) -> Tensor:
        """Turn the key heads likewise."""
        return self._rotate(k_RH, plan[1][1])

    def heads_first(self, k_RH: Tensor, plan: Any) -> Tensor:
        """Bring keys or values from the order (B, L, K) of rows into (B, K, L)."""
        return self._reorder(k_RH, plan[4])

    def attention(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Any) -> Tensor:
        """Return softmax(q k^T / sqrt(H) + mask) v for queries in the order (B, L, N), keys in (B, K, S).

        The G query heads of a key/value head are rows of one matrix, so keys and values are never repeated.
        """
        (b, num_kv_heads), _, mask, (heads_first, tokens_first), _ = plan
        h = q_RH.shape[1]
        k_BKSH, v_BKSH = k_RH.reshape(b, num_kv_heads, -1, h), v_RH.reshape(b, num_kv_heads, -1, h)
        q_RH = self._reorder(q_RH * (h**-0.5), (heads_first, tokens_first))
        scores = self._scores(q_RH.reshape(b, num_kv_heads, -1, h), k_BKSH)
        if len(mask.shape) == 1:
            scores = self._add_row(scores.reshape(-1, mask.shape[0]), mask)
        else:
            scores = scores.reshape(mask.shape) + mask
        probs_RS = self._softmax(scores.reshape(-1, k_BKSH.shape[2]))
        out_RH = self._weighted(probs_RS.reshape(b, num_kv_heads, -1, k_BKSH.shape[2]), v_BKSH).reshape(-1, h)
        return self._reorder(out_RH, (tokens_first, heads_first))

    def cached_attention(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Any, cached: Any) -> Tensor:
        """Store new keys and values, all in the order (B, L, heads), and attend to those stored so far."""
        keys, values, num_rows, places = cached
        k_RH = write_and_read(keys, places, self.heads_first(k_RH, plan), num_rows)
        v_RH = write_and_read(values, places, self.heads_first(v_RH, plan), num_rows)
        return self.attention(q_RH, k_RH, v_RH, plan)

    def adam_scalars(
        self, lr: float, step: int, eps: float, decay: float, betas: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return rate, eps, decay and step as `adamw` takes them for the `step`-th update, counted from 1.

        The kernel knows no bias correction. With c1 = 1 - beta1^t, c2 = 1 - beta2^t and
            rate = lr sqrt(c2) / c1,  eps' = eps sqrt(c2),  decay' = decay c1 / sqrt(c2)
        its update is lr * ((m / c1) / (sqrt(v / c2) + eps) + decay * weight).
        """
        c1, root2 = 1.0 - betas[0] ** step, math.sqrt(1.0 - betas[1] ** step)
        rate, eps, decay = lr * root2 / c1, eps * root2, decay * c1 / root2
        return _scalar(rate), _scalar(eps), _scalar(decay), _scalar(step)

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
        """Update a weight and its moments in place; all float32, the scalars of `adam_scalars` too.

        The gradient is multiplied by `scale` first.

        With m and v as Adam has them, without its bias correction (Kingma and Ba 2015, algorithm 1):
        weight = weight (1 - rate decay) - rate m / (sqrt(v) + eps).
        """
        gradient = gradient if scale is None else gradient * scale
        # AdamWeightDecay is the same, but one element at a time and in double precision: six times as long.
        if decay is not None:
            weight = ops.depend(weight, self._descend(weight, rate * decay, weight))
        return self._adam(weight, m, v, 0.0, 0.0, rate, betas[0], betas[1], eps, gradient)

    def scale(self, target: Parameter, factor: Tensor) -> Tensor:
        """Return `target` times a number, which may overwrite it."""
        return target * factor

    def sum_of_squares(self, x: Tensor) -> Tensor:
        """Return the sum of the squares of all elements, float32 of shape (1,)."""
        # The product of a row with itself sums squares without a temporary and, unlike L2Loss, exactly.
        rows = x.reshape(num_rows(x.size), 1, -1)
        return self._scores(rows, rows).sum().reshape(-1)

    def add_all(self, parts: tuple[Tensor, ...]) -> Tensor:
        """Return the sum of many tensors of shape (1,)."""
        return self._add_all(parts)

    def add_rows(self, table_VD: Tensor, ids_M: Tensor, rows_MD: Tensor) -> Tensor:
        """Return the table with each row added to its row of an id; takes no gradient."""
        return ops.tensor_scatter_add(table_VD, ids_M.reshape(-1, 1), rows_MD)

    def assign(self, target: Parameter, value: Tensor) -> Tensor:
        """Overwrite `target`."""
        return self._assign(target, value)

    def add_to(self, target: Parameter, value: Tensor) -> Tensor:
        """Add to `target` in place."""
        return self._assign_add(target, value)

    def accumulate(self, total: Tensor, value: Tensor) -> Tensor:
        """Return the sum of two tensors of one shape, in the type of `total`, which nothing else reads."""
        return total + value

    def fold_bits(self, x: Tensor) -> Tensor:
        """Return x ^ (x >> 15) of int32, the shift with its sign."""
        return self._xor(x, self._shift(x, self._fifteen))

    def clear(self, target: Parameter) -> Tensor:
        """Set to zero in place; NaN stays, as `clears_nan` says."""
        # Not zeros_like, which is compiled into a constant as large as the weight.
        return self._assign(target, target - target)

    def rows(self, x: Tensor, first: int, end: int) -> Tensor:
        """Return rows `first` to `end` of a tensor that takes no gradient."""
        return x[first:end]

    def subtract_at(self, x_MV: Tensor, columns_M1: Tensor, values_M1: Tensor) -> Tensor:
        """Return `x_MV` after one subtraction in each row; takes no gradient."""
        rows_M1 = Tensor(np.arange(x_MV.shape[0], dtype=np.int32).reshape(-1, 1))
        places_M2 = self._join((rows_M1, columns_M1))
        return ops.tensor_scatter_sub(x_MV, places_M2, values_M1.reshape(-1))

    def _mask(self, visible_BLS: Tensor | None, length: int, num_keys: int, num_heads: int) -> Tensor:
        """What is added to the scores: of shape (B * N * L, S), or (L * S) for the causal order.

        The last query is at the place of the last key.
        """
        if visible_BLS is None:
            hidden_LS = np.full((length, num_keys), HIDDEN, np.float32)
            return Tensor(np.triu(hidden_LS, num_keys - length + 1)).reshape(-1)
        mask_B1LS = ((1.0 - visible_BLS.astype(ms.float32)) * HIDDEN).expand_dims(1)
        return ops.tile(mask_B1LS, (1, num_heads, 1, 1)).reshape(-1, mask_B1LS.shape[3])

    def _turns(self, cos_BLH: Tensor, sin_BLH: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
        """Repeat each token's cos and sin for its heads; with -sin first, swapped halves need no negation."""
        h = cos_BLH.shape[2]
        cos_M1H = self._join((cos_BLH, cos_BLH)).reshape(-1, 1, 2 * h)
        sin_M1H = self._join((-sin_BLH, sin_BLH)).reshape(-1, 1, 2 * h)
        repeats = (1, num_heads, 1)
        return ops.tile(cos_M1H, repeats).reshape(-1, 2 * h), ops.tile(sin_M1H, repeats).reshape(-1, 2 * h)

    def _rotate(self, x_RH: Tensor, turns: Any) -> Tensor:
        first, second = self._halves(x_RH)
        return x_RH * turns[0] + self._join((second, first)) * turns[1]

    def _reorder(self, x_RH: Tensor, orders: Any) -> Tensor:
        order, inverse = orders
        return x_RH if order is None else self._order_rows(x_RH, order, inverse)


def make_kernels(device_target: str, *, float32_residual: bool = False) -> PortableKernels | AscendKernels:
    """Return the kernels of `device_target`, MindSpore's name of a device.

    With `float32_residual` layers add to float32 on Ascend, too; a CPU knows nothing else.

    Raises:
        ConfigError: The device is neither CPU nor Ascend.
    """
    if device_target == "Ascend":
        return AscendKernels(float32_residual=float32_residual)
    if device_target == "CPU":
        return PortableKernels()
    raise ConfigError(f"device_target={device_target!r} is not supported; use CPU or Ascend")


def _scalar(value: float) -> Tensor:
    return Tensor(np.float32(value))


def swapped_rows(b: int, outer: int, inner: int) -> Tensor | None:
    """Return what brings rows from (b, outer, inner) into (b, inner, outer); None for as they are."""
    if outer == 1 or inner == 1:
        return None
    rows = np.arange(b * outer * inner, dtype=np.int32).reshape(b, outer, inner)
    return Tensor(np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(-1))
