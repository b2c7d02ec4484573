"""MindSpore's fused operators for Ascend: bfloat16, with norms, rotations and softmax in float32.

`docs/ascend.md` lists each call with its documentation and with what has been checked; nothing here has run
on the hardware. The operators take tokens before heads, (B, L, heads, H), so that nothing is transposed.

B batch, L query length, S key length, T slots of a cache row, N query heads, K key/value heads, H head_dim,
F feed-forward, V vocabulary, M rows (B * L), R head rows (B * L * N or B * L * K), D width, P blocks of a
row, W writes to a cache.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, ops

from qwen3_model.cache import BLOCK_TOKENS, BlockCache, KVCache
from qwen3_model.config import Qwen3Config

# FlashAttentionScore's compressed causal mask has this fixed size whatever the sequence length.
COMPRESSED_MASK = 2048
FULL_MASK, COMPRESSED_CAUSAL = 0, 2
"""Its sparse modes: the whole (L, S) as a mask, and the causal order counted from the first key."""
SPLIT_HALVES = 0
"""RotaryPositionEmbedding's mode in which x[i] and x[i + H/2] are a pair."""


@ms.jit_class
class AscendKernels:
    """MindSpore's fused operators for Ascend, in bfloat16."""

    compute_dtype = ms.bfloat16

    def __init__(self) -> None:
        self._matmul = ops.MatMul(transpose_b=True)
        self._join = ops.Concat(-1)
        self._adamw, self._no_decay = ops.AdamWeightDecay(), Tensor(0.0, ms.float32)

    def make_cache(self, config: Qwen3Config, num_rows: int, capacity: int) -> KVCache:
        """Return room for `capacity` tokens in each of `num_rows` rows, in blocks that they share."""
        return BlockCache(config, num_rows * -(-capacity // BLOCK_TOKENS), self.compute_dtype)

    def embed(self, weight_VD: Tensor, ids_M: Tensor) -> Tensor:
        """Return the row of each id."""
        return mint.nn.functional.embedding(ids_M, weight_VD).astype(self.compute_dtype)

    def pick(self, x_MD: Tensor, rows_R: Tensor) -> Tensor:
        """Return those rows."""
        return mint.index_select(x_MD, 0, rows_R)

    def linear(self, x_MD: Tensor, weight_OD: Tensor) -> Tensor:
        """Multiply each row by the transpose of the weight."""
        return self._matmul(x_MD, weight_OD.astype(x_MD.dtype))

    def rms_norm(self, x_MD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Scale each row to unit root mean square, then by the weight, in float32."""
        if weight_D.dtype == x_MD.dtype:  # the operator itself computes in float32
            return ops.rms_norm(x_MD, weight_D, eps)[0]
        normed_MD = ops.rms_norm(x_MD.astype(ms.float32), weight_D.astype(ms.float32), eps)[0]
        return normed_MD.astype(self.compute_dtype)

    def swiglu(self, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
        """Return silu(gate) * up."""
        return ops.auto_generate.swiglu(self._join((gate_MF, up_MF)), -1)

    def plan(
        self, cos_BLH: Tensor, sin_BLH: Tensor, visible_BLS: Tensor | None, num_heads: int, num_kv_heads: int
    ) -> tuple:
        """Return what every layer needs: sizes, the turns as (B, L, 1, H), the mask (1 hides a key)."""
        sizes = cos_BLH.shape[0], cos_BLH.shape[1], num_heads, num_kv_heads
        if visible_BLS is None:
            mask = Tensor(np.triu(np.ones((COMPRESSED_MASK, COMPRESSED_MASK), np.uint8), 1))
        else:
            mask = mint.logical_not(visible_BLS).astype(ms.uint8).expand_dims(1)
        cos_BL1H = self._join((cos_BLH, cos_BLH)).expand_dims(2)
        sin_BL1H = self._join((sin_BLH, sin_BLH)).expand_dims(2)
        return sizes, (cos_BL1H, sin_BL1H), mask

    def rotate_queries(self, q_RH: Tensor, plan: Any) -> Tensor:
        """Turn pair i = (x[i], x[i + H/2]) of each query head by its angle, in float32."""
        return self._rotate(q_RH, plan, plan[0][2])

    def rotate_keys(self, k_RH: Tensor, plan: Any) -> Tensor:
        """Turn the key heads likewise."""
        return self._rotate(k_RH, plan, plan[0][3])

    def heads_first(self, k_RH: Tensor, plan: Any) -> Tensor:
        """Leave keys or values in the order (B, L, K) of rows, which is the one that `attention` takes."""
        return k_RH

    def attention(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Any) -> Tensor:
        """Return softmax(q k^T / sqrt(H) + mask) v in the order of `q_RH`, never holding all scores."""
        (b, length, num_heads, num_kv_heads), _, mask = plan
        h = q_RH.shape[1]
        out_BLD = ops.flash_attention_score(
            q_RH.reshape(b, length, num_heads * h),
            k_RH.reshape(b, -1, num_kv_heads * h),
            v_RH.reshape(b, -1, num_kv_heads * h),
            num_heads,
            attn_mask=mask,
            scalar_value=h**-0.5,
            input_layout="BSH",
            sparse_mode=COMPRESSED_CAUSAL if len(mask.shape) == 2 else FULL_MASK,
        )
        return out_BLD.reshape(-1, h)

    def cached_attention(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Any, cached: Any) -> Tensor:
        """Store new keys and values, all in the order (B, L, heads), and attend to those stored so far."""
        keys, values, _, places = cached
        (b, length, num_heads, num_kv_heads), _, _ = plan
        h = q_RH.shape[1]
        keys = self._stored(keys, places[0], k_RH)
        values = self._stored(values, places[0], v_RH)
        if length > 1:
            return self.attention(q_RH, self._joined(keys, places[1]), self._joined(values, places[1]), plan)
        out_B1D = ops.incre_flash_attention(
            q_RH.reshape(b, 1, num_heads * h),
            [keys],
            [values],
            actual_seq_lengths=places[2],
            block_table=places[1],
            block_size=keys.shape[1],
            num_heads=num_heads,
            input_layout="BSH",
            scale_value=h**-0.5,
            num_key_value_heads=num_kv_heads,
        )
        return out_B1D.reshape(-1, h)

    def adamw(  # noqa: PLR0913
        self,
        weight: Parameter,
        m: Parameter,
        v: Parameter,
        gradient: Tensor,
        rate: Tensor,
        eps: Tensor,
        decay: Tensor | None,
        betas: tuple[float, float],
    ) -> Tensor:
        """Update a weight and its moments in place; all float32, the scalars too.

        With m and v as Adam has them: weight = weight - rate (m / (sqrt(v) + eps) + decay weight).
        """
        own_decay = self._no_decay if decay is None else decay
        return self._adamw(weight, m, v, rate, betas[0], betas[1], eps, own_decay, gradient)

    def _stored(self, cache: Parameter, writes_W2: Tensor, new_RH: Tensor) -> Tensor:
        """The cache with new rows in the order (B, L, K) at `writes_W2`: a block and a token of it."""
        new_WLD = new_RH.reshape(writes_W2.shape[0], -1, cache.shape[2])
        return ops.depend(cache, ops.auto_generate.kv_cache_scatter_update(cache, writes_W2, new_WLD, 1))

    def _joined(self, cache: Tensor, blocks_P: Tensor) -> Tensor:
        """One row's blocks side by side, (1, S, K * H)."""
        return mint.index_select(cache, 0, blocks_P).reshape(1, -1, cache.shape[2])

    def _rotate(self, x_RH: Tensor, plan: Any, num_heads: int) -> Tensor:
        (b, length, _, _), (cos_BL1H, sin_BL1H), _ = plan
        h = x_RH.shape[1]
        x_BLNH = x_RH.astype(ms.float32).reshape(b, length, num_heads, h)
        turned_BLNH = ops.auto_generate.rotary_position_embedding(x_BLNH, cos_BL1H, sin_BL1H, SPLIT_HALVES)
        return turned_BLNH.reshape(-1, h).astype(self.compute_dtype)
