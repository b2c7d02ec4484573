"""The operations of `seam.Kernels` as plain mathematics in float32, which runs everywhere.

B batch, L query length, S key length, N query heads, K key/value heads, G = N / K, H head_dim,
F feed-forward, V vocabulary, M rows (B * L), R head rows (B * L * N), D width.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, ops

from qwen3_model.config import Qwen3Config
from qwen3_model.network.cache import KVCache, LayerCache, write_and_read
from qwen3_model.network.kernels.portable_ops import OrderRows, RmsNorm, Softmax, num_rows
from qwen3_model.network.kernels.seam import KEY_TURNS, OWN, QUERY_TURNS, Plan, Segments, Turns

Orders = tuple[Tensor | None, Tensor | None]
"""Which row comes where and the inverse of it; None where rows stay as they are."""

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
        return KVCache(config, num_rows, capacity, self.compute_dtype)

    def embed(self, weight_VD: Tensor, ids_M: Tensor) -> Tensor:
        """Return the row of each id."""
        return ops.gather(weight_VD, ids_M, 0).astype(self.compute_dtype)

    def pick(self, x_MD: Tensor, rows_R: Tensor) -> Tensor:
        return ops.gather(x_MD, rows_R, 0)

    def columns(self, weight_RV: Tensor, ids_M: Tensor) -> Tensor:
        return ops.gather(weight_RV, ids_M, 1)

    def linear(self, x_MD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply each row by the transpose of the weight, which stays where it is."""
        return self._matmul(x_MD, weight_OD.astype(x_MD.dtype))

    def rms_norm(self, x_MD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return self._rms_norm(x_MD, weight_D.astype(x_MD.dtype), eps)

    def swiglu(self, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
        return mint.nn.functional.silu(gate_MF) * up_MF

    def plan(
        self,
        cos_BLH: Tensor,
        sin_BLH: Tensor,
        visible_BLS: Segments | None,
        num_heads: int,
        num_kv_heads: int,
    ) -> Plan:
        """Return turns as (R, H), a mask to be added to the scores, and the orders of query and key rows."""
        b, length = cos_BLH.shape[0], cos_BLH.shape[1]
        sizes = b, length, num_heads, num_kv_heads
        query_turns = self._repeat_for_heads(cos_BLH, sin_BLH, num_heads)
        key_turns = self._repeat_for_heads(cos_BLH, sin_BLH, num_kv_heads)
        mask = self._mask(visible_BLS, length, length, num_heads)
        q_orders = swapped_rows(b, length, num_heads), swapped_rows(b, num_heads, length)
        k_orders = swapped_rows(b, length, num_kv_heads), swapped_rows(b, num_kv_heads, length)
        return sizes, query_turns, key_turns, mask, (q_orders, k_orders)

    def segments(self, ids_BL: np.ndarray) -> Tensor:
        """Return what a graph takes for documents kept apart: each token's document, (B, L)."""
        return Tensor(ids_BL)

    def rotate_queries(self, q_RH: Tensor, plan: Plan) -> Tensor:
        return self._rotate(q_RH, plan[QUERY_TURNS])

    def rotate_keys(self, k_RH: Tensor, plan: Plan) -> Tensor:
        return self._rotate(k_RH, plan[KEY_TURNS])

    def heads_first(self, k_RH: Tensor, plan: Plan) -> Tensor:
        """Bring keys or values from the order (B, L, K) of rows into (B, K, L)."""
        _, k_orders = plan[OWN]
        return self._reorder(k_RH, k_orders)

    def attention(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan) -> Tensor:
        """Return softmax(q k^T / sqrt(H) + mask) v for queries in the order (B, L, N), keys in (B, K, S).

        The G query heads of a key/value head are rows of one matrix, so keys and values are never repeated.
        """
        (b, _, _, num_kv_heads), _, _, mask, ((heads_first, tokens_first), _) = plan
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

    def cached_attention(
        self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan, cache: LayerCache
    ) -> Tensor:
        keys, values, num_rows, slots = cache
        k_RH = write_and_read(keys, slots, self.heads_first(k_RH, plan), num_rows)
        v_RH = write_and_read(values, slots, self.heads_first(v_RH, plan), num_rows)
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
        return target * factor

    def sum_of_squares(self, x: Tensor) -> Tensor:
        # The product of a row with itself sums squares without a temporary and, unlike L2Loss, exactly.
        rows = x.reshape(num_rows(x.size), 1, -1)
        return self._scores(rows, rows).sum().reshape(-1)

    def add_all(self, parts: tuple[Tensor, ...]) -> Tensor:
        return self._add_all(parts)

    def add_rows(self, table_VD: Tensor, ids_M: Tensor, rows_MD: Tensor) -> Tensor:
        """Return the table with each row added to its row of an id; takes no gradient."""
        return ops.tensor_scatter_add(table_VD, ids_M.reshape(-1, 1), rows_MD)

    def assign(self, target: Parameter, value: Tensor) -> Tensor:
        return self._assign(target, value)

    def add_to(self, target: Parameter, value: Tensor) -> Tensor:
        return self._assign_add(target, value)

    def accumulate(self, total: Tensor, value: Tensor) -> Tensor:
        """Return the sum of two tensors of one shape, in the type of `total`, which nothing else reads."""
        return total + value

    def fold_bits(self, x: Tensor) -> Tensor:
        return self._xor(x, self._shift(x, self._fifteen))

    def clear(self, target: Parameter) -> Tensor:
        """Set to zero in place; NaN stays, as `clears_nan` says."""
        # Not zeros_like, which is compiled into a constant as large as the weight.
        return self._assign(target, target - target)

    def rows(self, x: Tensor, first: int, end: int) -> Tensor:
        return x[first:end]

    def subtract_at(self, x_MV: Tensor, columns_M1: Tensor, values_M1: Tensor) -> Tensor:
        """Return `x_MV` after one subtraction in each row; takes no gradient."""
        rows_M1 = Tensor(np.arange(x_MV.shape[0], dtype=np.int32).reshape(-1, 1))
        cells_M2 = self._join((rows_M1, columns_M1))
        return ops.tensor_scatter_sub(x_MV, cells_M2, values_M1.reshape(-1))

    def _mask(self, visible_BLS: Tensor | None, length: int, num_keys: int, num_heads: int) -> Tensor:
        """What is added to the scores: of shape (B * N * L, S), or (L * S) for the causal order.

        The last query has the position of the last key.
        """
        if visible_BLS is None:
            hidden_LS = np.full((length, num_keys), HIDDEN, np.float32)
            return Tensor(np.triu(hidden_LS, num_keys - length + 1)).reshape(-1)
        mask_B1LS = ((1.0 - visible_BLS.astype(ms.float32)) * HIDDEN).expand_dims(1)
        return ops.tile(mask_B1LS, (1, num_heads, 1, 1)).reshape(-1, mask_B1LS.shape[3])

    def _repeat_for_heads(self, cos_BLH: Tensor, sin_BLH: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
        """Repeat each token's cos and sin for its heads; with -sin first, swapped halves need no negation."""
        h = cos_BLH.shape[2]
        cos_M1H = self._join((cos_BLH, cos_BLH)).reshape(-1, 1, 2 * h)
        sin_M1H = self._join((-sin_BLH, sin_BLH)).reshape(-1, 1, 2 * h)
        repeats = (1, num_heads, 1)
        return ops.tile(cos_M1H, repeats).reshape(-1, 2 * h), ops.tile(sin_M1H, repeats).reshape(-1, 2 * h)

    def _rotate(self, x_RH: Tensor, turns: Turns) -> Tensor:
        first, second = self._halves(x_RH)
        return x_RH * turns[0] + self._join((second, first)) * turns[1]

    def _reorder(self, x_RH: Tensor, orders: Orders) -> Tensor:
        order, inverse = orders
        return x_RH if order is None else self._order_rows(x_RH, order, inverse)


def _scalar(value: float) -> Tensor:
    return Tensor(np.float32(value))


def swapped_rows(b: int, outer: int, inner: int) -> Tensor | None:
    """Return what brings rows from (b, outer, inner) into (b, inner, outer); None for as they are."""
    if outer == 1 or inner == 1:
        return None
    rows = np.arange(b * outer * inner, dtype=np.int32).reshape(b, outer, inner)
    return Tensor(np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(-1))
