"""MindSpore's fused operators for Ascend: bfloat16, with norms, rotations and softmax in float32.

`docs/ascend.md` lists each call with its documentation and with what has been checked; nothing here has run
on the hardware. The operators take tokens before heads, (B, L, heads, H), so that nothing is transposed.

B batch, L query length, S key length, T slots of a cache row, N query heads, K key/value heads, H head_dim,
F feed-forward, V vocabulary, M rows (B * L), R head rows (B * L * N or B * L * K), D width, P blocks of a
row, W writes to a cache.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, ops

from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.network.cache import BLOCK_TOKENS, BLOCKS, LENGTHS, WRITES, BlockCache, KVCache, LayerCache
from qwen3_model.network.kernels.seam import KEY_TURNS, QUERY_TURNS, SIZES, Plan, Segments, Sizes, Turns

# FlashAttentionScore's compressed causal mask has this fixed size whatever the sequence length.
COMPRESSED_MASK = 2048
FULL_MASK, COMPRESSED_CAUSAL, CAUSAL_IN_EACH = 0, 2, 3
"""Sparse modes of FlashAttentionScore: the whole (L, S) as a mask; causal order; the same per document."""
FEWEST_ENDS = 128
"""Documents of a batch are filled up to this many, or a power of two: each number is a graph of its own."""
MOST_ENDS = 2048
"""Documents of a batch that aclnnFlashAttentionVarLenScore takes, as CANN's document of it says."""
SPLIT_HALVES = 0
"""RotaryPositionEmbedding's mode in which x[i] and x[i + H/2] are a pair."""


@ms.jit_class
class AscendKernels:
    """MindSpore's fused operators for Ascend, in bfloat16.

    What the layers add to is of `residual_dtype`: bfloat16, or float32 (`fp32_residual_connection`).
    """

    compute_dtype = ms.bfloat16
    clears_nan = True

    def __init__(self, *, float32_residual: bool = False) -> None:
        self.residual_dtype = ms.float32 if float32_residual else self.compute_dtype
        self._matmul = ops.MatMul(transpose_b=True)
        self._join = ops.Concat(-1)
        self._cat, self._adamw = ops.Concat(0), ops.auto_generate.AdamW()
        self._copy, self._add = ops.auto_generate.InplaceCopy(), ops.auto_generate.InplaceAddExt()
        self._zero, self._slice = ops.auto_generate.InplaceZero(), ops.auto_generate.SliceExt()
        self._scatter_add = ops.auto_generate.InplaceScatterAdd()
        self._multiply = ops.auto_generate.InplaceMul()

    def make_cache(self, config: Qwen3Config, num_rows: int, capacity: int) -> KVCache:
        """Return room for `capacity` tokens in each of `num_rows` rows, in blocks that they share."""
        return BlockCache(config, num_rows * -(-capacity // BLOCK_TOKENS), self.compute_dtype)

    def embed(self, weight_VD: Tensor, ids_M: Tensor) -> Tensor:
        """Return the row of each id."""
        return mint.nn.functional.embedding(ids_M, weight_VD).astype(self.compute_dtype)

    def pick(self, x_MD: Tensor, rows_R: Tensor) -> Tensor:
        return mint.index_select(x_MD, 0, rows_R)

    def columns(self, weight_RV: Tensor, ids_M: Tensor) -> Tensor:
        return mint.index_select(weight_RV, 1, ids_M)

    def linear(self, x_MD: Tensor, weight_OD: Tensor) -> Tensor:
        return self._matmul(x_MD, weight_OD.astype(x_MD.dtype))

    def rms_norm(self, x_MD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Scale each row to unit root mean square, then by the weight, in float32."""
        if weight_D.dtype == x_MD.dtype:  # the operator itself computes in float32
            return ops.rms_norm(x_MD, weight_D, eps)[0].astype(self.compute_dtype)
        normed_MD = ops.rms_norm(x_MD.astype(ms.float32), weight_D.astype(ms.float32), eps)[0]
        return normed_MD.astype(self.compute_dtype)

    def swiglu(self, gate_MF: Tensor, up_MF: Tensor) -> Tensor:
        """Return silu(gate) * up."""
        return ops.auto_generate.swiglu(self._join((gate_MF, up_MF)), -1)

    def plan(
        self,
        cos_BLH: Tensor,
        sin_BLH: Tensor,
        visible_BLS: Segments | None,
        num_heads: int,
        num_kv_heads: int,
    ) -> Plan:
        """Return turns as (B, L, 1, H), a mask in which 1 hides a key, and the ends of documents, if any."""
        sizes = cos_BLH.shape[0], cos_BLH.shape[1], num_heads, num_kv_heads
        ends = None
        if visible_BLS is None or isinstance(visible_BLS, tuple):
            ends = visible_BLS
            mask = Tensor(np.triu(np.ones((COMPRESSED_MASK, COMPRESSED_MASK), np.uint8), 1))
        else:
            mask = mint.logical_not(visible_BLS).astype(ms.uint8).expand_dims(1)
        cos_BL1H = self._join((cos_BLH, cos_BLH)).expand_dims(2)
        sin_BL1H = self._join((sin_BLH, sin_BLH)).expand_dims(2)
        turns = cos_BL1H, sin_BL1H
        return sizes, turns, turns, mask, ends

    def segments(self, ids_BL: np.ndarray) -> tuple[int, ...]:
        """Return what a graph takes for documents kept apart: where each ends in the rows side by side.

        The last end is repeated, which says that further documents are empty. Graphs take the numbers (B, L),
        too, and make a mask of (L, L) of them.
        """
        is_end_BL = np.ones(ids_BL.shape, bool)
        is_end_BL[:, :-1] = ids_BL[:, 1:] != ids_BL[:, :-1]
        ends = (np.flatnonzero(is_end_BL) + 1).tolist()
        return ms.mutable(tuple(ends + ends[-1:] * (room_for_documents(len(ends)) - len(ends))))

    def rotate_queries(self, q_RH: Tensor, plan: Plan) -> Tensor:
        """Turn in float32."""
        _, _, num_heads, _ = plan[SIZES]
        return self._rotate(q_RH, plan[SIZES], num_heads, plan[QUERY_TURNS])

    def rotate_keys(self, k_RH: Tensor, plan: Plan) -> Tensor:
        """Turn in float32."""
        _, _, _, num_kv_heads = plan[SIZES]
        return self._rotate(k_RH, plan[SIZES], num_kv_heads, plan[KEY_TURNS])

    def heads_first(self, k_RH: Tensor, plan: Plan) -> Tensor:
        """Leave keys or values in the order (B, L, K) of rows, which is the one that `attention` takes."""
        return k_RH

    def attention(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan) -> Tensor:
        """Return softmax(q k^T / sqrt(H) + mask) v in the order of `q_RH`, never holding all scores."""
        (b, length, num_heads, num_kv_heads), _, _, mask, ends = plan
        h = q_RH.shape[1]
        if ends is not None:
            return ops.flash_attention_score(
                q_RH.reshape(-1, num_heads, h),
                k_RH.reshape(-1, num_kv_heads, h),
                v_RH.reshape(-1, num_kv_heads, h),
                num_heads,
                attn_mask=mask,
                actual_seq_qlen=ends,
                actual_seq_kvlen=ends,
                scalar_value=h**-0.5,
                input_layout="TND",
                sparse_mode=CAUSAL_IN_EACH,
            ).reshape(-1, h)
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

    def cached_attention(
        self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan, cache: LayerCache
    ) -> Tensor:
        """Store keys and values in their blocks; a piece of a prompt then reads its blocks side by side."""
        keys, values, _, slots = cache
        b, length, num_heads, num_kv_heads = plan[SIZES]
        h = q_RH.shape[1]
        keys = self._store_rows(keys, slots[WRITES], k_RH)
        values = self._store_rows(values, slots[WRITES], v_RH)
        if length > 1:
            return self.attention(
                q_RH, self._join_blocks(keys, slots[BLOCKS]), self._join_blocks(values, slots[BLOCKS]), plan
            )
        out_B1D = ops.incre_flash_attention(
            q_RH.reshape(b, 1, num_heads * h),
            [keys],
            [values],
            actual_seq_lengths=slots[LENGTHS],
            block_table=slots[BLOCKS],
            block_size=keys.shape[1],
            num_heads=num_heads,
            input_layout="BSH",
            scale_value=h**-0.5,
            num_key_value_heads=num_kv_heads,
        )
        return out_B1D.reshape(-1, h)

    def adam_scalars(
        self, lr: float, step: int, eps: float, decay: float, betas: tuple[float, float]
    ) -> tuple[float, float, float, Tensor]:
        # The operator takes numbers; one that is not mutable would be a constant of the graph.
        return ms.mutable(float(lr)), eps, decay, Tensor([step], ms.int64)

    def adamw(  # noqa: PLR0913
        self,
        weight: Parameter,
        m: Parameter,
        v: Parameter,
        gradient: Tensor,
        rate: float,
        eps: float,
        decay: float | None,
        step: Tensor,
        betas: tuple[float, float],
        scale: Tensor | None = None,
    ) -> Tensor:
        """Update a weight and its moments in place, all float32 (Loshchilov and Hutter 2019, algorithm 2).

        The gradient is multiplied by `scale` first.
        """
        gradient = gradient if scale is None else gradient * scale
        own_decay = 0.0 if decay is None else decay
        beta1, beta2 = betas
        # Without amsgrad the fourth tensor is not read; MindSpore's own optimizer gives v there, too.
        updated = self._adamw(
            weight, m, v, v, gradient, step, rate, beta1, beta2, own_decay, eps, False, False
        )
        return updated[0]

    def scale(self, target: Parameter, factor: Tensor) -> Tensor:
        return self._multiply(target, factor)

    def sum_of_squares(self, x: Tensor) -> Tensor:
        return mint.sum(x * x).reshape(1)

    def add_all(self, parts: tuple[Tensor, ...]) -> Tensor:
        return mint.sum(self._cat(parts)).reshape(1)

    def assign(self, target: Parameter, value: Tensor) -> Tensor:
        return self._copy(target, value)

    def add_to(self, target: Parameter, value: Tensor) -> Tensor:
        return self._add(target, value, 1)

    def accumulate(self, total: Tensor, value: Tensor) -> Tensor:
        """Add to a float32 `total` where it lies, which nothing else reads, and return it; no gradient."""
        return self._add(total, value, 1)

    def fold_bits(self, x: Tensor) -> Tensor:
        return mint.bitwise_xor(x, mint.floor_divide(x, 1 << 15))

    def clear(self, target: Parameter) -> Tensor:
        """Set all to zero in place."""
        return self._zero(target)

    def rows(self, x: Tensor, first: int, end: int) -> Tensor:
        return self._slice(x, 0, first, end, 1)

    def subtract_at(self, x_MV: Tensor, columns_M1: Tensor, values_M1: Tensor) -> Tensor:
        """Subtract at one column of each row of `x_MV`, which nothing else reads; takes no gradient."""
        return self._scatter_add(x_MV, 1, columns_M1, -values_M1)

    def _store_rows(self, cache: Parameter, writes_W2: Tensor, new_RH: Tensor) -> Tensor:
        """The cache with new rows in the order (B, L, K) at `writes_W2`: a block and a token of it."""
        new_WLD = new_RH.reshape(writes_W2.shape[0], -1, cache.shape[2])
        return ops.depend(cache, ops.auto_generate.kv_cache_scatter_update(cache, writes_W2, new_WLD, 1))

    def _join_blocks(self, cache: Tensor, blocks_P: Tensor) -> Tensor:
        """One row's blocks side by side, (1, S, K * H)."""
        return mint.index_select(cache, 0, blocks_P).reshape(1, -1, cache.shape[2])

    def _rotate(self, x_RH: Tensor, sizes: Sizes, num_heads: int, turns: Turns) -> Tensor:
        (b, length, _, _), (cos_BL1H, sin_BL1H) = sizes, turns
        h = x_RH.shape[1]
        x_BLNH = x_RH.astype(ms.float32).reshape(b, length, num_heads, h)
        turned_BLNH = ops.auto_generate.rotary_position_embedding(x_BLNH, cos_BL1H, sin_BL1H, SPLIT_HALVES)
        return turned_BLNH.reshape(-1, h).astype(self.compute_dtype)


def room_for_documents(count: int) -> int:
    """Return to how many documents a batch of `count` is filled up.

    Raises:
        ConfigError: There are more than the operator takes.
    """
    if count > MOST_ENDS:
        raise ConfigError(
            f"a micro-batch holds {count:,} documents that are kept apart, and attention on Ascend takes at "
            f"most {MOST_ENDS:,}: lower runner_config.batch_size, or leave the documents together "
            "(reset_attention_mask: False)"
        )
    return max(FEWEST_ENDS, 1 << (count - 1).bit_length())
