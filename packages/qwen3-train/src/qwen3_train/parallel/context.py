"""Attention where several ranks share the sequence (context parallelism).

A rank has the queries of two chunks of every sample, `data.context_part` says which. Keys and values, of
which grouped queries have few, are gathered over the ranks (backward their gradients are added up and handed
out again); each chunk's queries then look at the sequence up to the chunk's end. So there is neither a score
nor a mask of the whole square, and all ranks look at as many keys (Dubey et al. 2024, Llama 3, 3.3.2;
mindformers' `colossalai_cp` gathers as well).

B samples, L tokens of a sample, C = L / (2 T) of a chunk, T ranks of the group, S keys of a chunk's queries,
N query heads, K key/value heads, H head_dim, R head rows, W = 2 * K * H.
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from qwen3_model.network.kernels.ascend import AscendKernels, room_for_documents
from qwen3_model.network.kernels.portable import PortableKernels, swapped_rows
from qwen3_model.network.kernels.seam import Kernels, Plan, Segments
from qwen3_model.ranks.collectives import Group
from qwen3_train.data.context_part import ContextPart

CAUSAL_FROM_THE_END = 3
"""FlashAttentionScore's sparse mode in which the last query is at the position of the last key."""


def context_kernels(device: str, group: Group, *, float32_residual: bool) -> Kernels:
    """Return the kernels of a device whose ranks of `group` share the sequence."""
    if device == "Ascend":
        return ContextAscendKernels(group, float32_residual=float32_residual)
    return ContextPortableKernels(group)


def document_lengths(ids_BL: np.ndarray, chunk: int, num_chunks: int) -> tuple[list[int], list[int]]:
    """Return the ends of each document's queries in a chunk, and of its keys up to the chunk's end.

    Both count samples side by side, a sample's documents before the chunk as one that has keys alone.
    """
    length = ids_BL.shape[1] // num_chunks
    first, end = chunk * length, (chunk + 1) * length
    query_ends, key_ends = [], []
    for row, ids_L in enumerate(ids_BL):
        starts = np.flatnonzero(np.diff(ids_L, prepend=ids_L[0] - 1))
        own = [int(start) for start in starts if first < start < end]
        begun = int(starts[starts <= first][-1])
        if begun > 0:
            query_ends.append(row * length)
            key_ends.append(row * end + begun)
        query_ends += [row * length + border - first for border in (*own, end)]
        key_ends += [row * end + border for border in (*own, end)]
    return query_ends, key_ends


@ms.jit_class
class _Sequence:
    """The keys and values that each chunk's queries look at."""

    def __init__(self, group: Group) -> None:
        size = group.size
        self.group, self.num_chunks = group, 2 * size
        self.counts = tuple(chunk + 1 for chunk in ContextPart(group.index, size).chunks)
        # Gathered are the chunks of rank 0, those of rank 1, ...
        order = [chunk for rank in range(size) for chunk in ContextPart(rank, size).chunks]
        self.piece_of_chunk = tuple(order.index(chunk) for chunk in range(2 * size))
        self._split, self._chunks = ops.auto_generate.SplitWithSize(), ops.Concat(1)
        self._pair, self._rows = ops.Concat(-1), ops.Concat(0)

    def gather_chunks(self, k_RH: Tensor, v_RH: Tensor, num_samples: int, num_kv_heads: int) -> tuple:
        """Return for each chunk its keys and its values, (B, S, K * H)."""
        width = num_kv_heads * k_RH.shape[1]
        both = self._pair((k_RH.reshape(-1, width), v_RH.reshape(-1, width)))
        rows = both.shape[0] // 2
        pieces = self._split(self.group.gather_rows(both), (rows,) * self.num_chunks, 0)
        found: tuple = ()
        for count in self.counts:
            parts: tuple[Tensor, ...] = ()
            for i in range(count):
                parts = (*parts, pieces[self.piece_of_chunk[i]].reshape(num_samples, -1, 2 * width))
            whole_BSW = parts[0] if count == 1 else self._chunks(parts)
            found = (*found, self._split(whole_BSW, (width, width), 2))
        return found

    def halves(self, q_RH: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queries of each chunk."""
        rows = q_RH.shape[0] // 2
        return self._split(q_RH, (rows, rows), 0)

    def join(self, outs: tuple[Tensor, ...]) -> Tensor:
        """Return what the chunks' queries have found, in the order of the queries."""
        return self._rows(outs)


Attend = Callable[[Tensor, Tensor, Tensor, Plan], Tensor]
"""Attention of a chunk: queries, keys and values as head rows, and the plan; it may be a cell."""


@ms.jit_class
class ContextPortableKernels(PortableKernels):
    """The plain kernels of a rank that has a part of the sequence."""

    def __init__(self, group: Group, attend: Attend | None = None) -> None:
        """Take the ranks that share the sequence, and what stands for the attention of a chunk."""
        super().__init__()
        self.group, self.sequence = group, _Sequence(group)
        self.plain = PortableKernels()
        self.attend = self.plain.attention if attend is None else attend

    def with_attention(self, attend: Attend) -> "ContextPortableKernels":
        """Return the same with another attention of a chunk's queries."""
        return ContextPortableKernels(self.group, attend)

    def plan(
        self,
        cos_BLH: Tensor,
        sin_BLH: Tensor,
        visible_BLS: tuple[Tensor, ...] | None,
        num_heads: int,
        num_kv_heads: int,
    ) -> Plan:
        """Return sizes, turns, and a plan for the queries of each chunk.

        The tables are those of the part, (2 * B, C, H/2); `visible_BLS` has what a chunk's queries see for
        each of them.
        """
        b, length = cos_BLH.shape[0] // 2, cos_BLH.shape[1]
        sizes = b, length, num_heads, num_kv_heads
        query_turns = self._repeat_for_heads(cos_BLH, sin_BLH, num_heads)
        key_turns = self._repeat_for_heads(cos_BLH, sin_BLH, num_kv_heads)
        plans: tuple[Plan, ...] = ()
        for i in range(2):
            keys = self.sequence.counts[i] * length
            visible = None if visible_BLS is None else visible_BLS[i]
            mask = self._mask(visible, length, keys, num_heads)
            q_orders = swapped_rows(b, length, num_heads), swapped_rows(b, num_heads, length)
            k_orders = swapped_rows(b, keys, num_kv_heads), swapped_rows(b, num_kv_heads, keys)
            plans = (*plans, (sizes, query_turns, key_turns, mask, (q_orders, k_orders)))
        return sizes, query_turns, key_turns, None, plans

    def segments(self, ids_BL: np.ndarray) -> Segments:
        """Return for each chunk which keys its queries see, (B, C, S)."""
        num_chunks = self.sequence.num_chunks
        length, visible = ids_BL.shape[1] // num_chunks, []
        for count in self.sequence.counts:
            end = count * length
            queries, keys = np.arange(end - length, end), np.arange(end)
            same_BCS = ids_BL[:, queries, None] == ids_BL[:, None, keys]
            visible.append(Tensor(same_BCS & (keys[None] <= queries[:, None])))
        # Tensors of a plain tuple are constants of a graph, which would be compiled anew for each step.
        return ms.mutable(tuple(visible))

    def heads_first(self, k_RH: Tensor, plan: Plan) -> Tensor:
        """Leave keys or values in the order (B, L, K) of rows until those of all ranks are there."""
        return k_RH

    def attention(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan) -> Tensor:
        """Return what the part's queries find in the sequence up to them, in the order of `q_RH`."""
        (b, _, _, num_kv_heads), _, _, _, plans = plan
        h = q_RH.shape[1]
        queries, found = self.sequence.halves(q_RH), self.sequence.gather_chunks(k_RH, v_RH, b, num_kv_heads)
        outs: tuple[Tensor, ...] = ()
        for i in range(2):
            keys = self.plain.heads_first(found[i][0].reshape(-1, h), plans[i])
            values = self.plain.heads_first(found[i][1].reshape(-1, h), plans[i])
            outs = (*outs, self.attend(queries[i], keys, values, plans[i]))
        return self.sequence.join(outs)


@ms.jit_class
class ContextAscendKernels(AscendKernels):
    """The fused kernels of a rank that has a part of the sequence."""

    def __init__(self, group: Group, *, float32_residual: bool = False) -> None:
        super().__init__(float32_residual=float32_residual)
        self.sequence = _Sequence(group)

    def segments(self, ids_BL: np.ndarray) -> tuple[int, ...]:
        """Return where the documents' queries and keys of each chunk end, four lists of one length in a row.

        The last ends are repeated, which says that further documents are empty.
        """
        num_chunks = self.sequence.num_chunks
        lists = [
            ends for count in self.sequence.counts for ends in document_lengths(ids_BL, count - 1, num_chunks)
        ]
        most = max(len(ends) for ends in lists)
        room = room_for_documents(most)
        return ms.mutable(tuple(end for ends in lists for end in (*ends, *ends[-1:] * (room - len(ends)))))

    def attention(self, q_RH: Tensor, k_RH: Tensor, v_RH: Tensor, plan: Plan) -> Tensor:
        """Return what the part's queries find in the sequence up to them, in the order of `q_RH`."""
        (rows, length, num_heads, num_kv_heads), _, _, mask, ends = plan
        b, h = rows // 2, q_RH.shape[1]
        queries, found = self.sequence.halves(q_RH), self.sequence.gather_chunks(k_RH, v_RH, b, num_kv_heads)
        outs: tuple[Tensor, ...] = ()
        for i in range(2):
            keys, values = found[i]
            if ends is None:
                out = ops.flash_attention_score(
                    queries[i].reshape(b, length, num_heads * h),
                    keys,
                    values,
                    num_heads,
                    attn_mask=mask,
                    scalar_value=h**-0.5,
                    input_layout="BSH",
                    sparse_mode=CAUSAL_FROM_THE_END,
                )
            else:
                room = len(ends) // 4
                out = ops.flash_attention_score(
                    queries[i].reshape(-1, num_heads, h),
                    keys.reshape(-1, num_kv_heads, h),
                    values.reshape(-1, num_kv_heads, h),
                    num_heads,
                    attn_mask=mask,
                    actual_seq_qlen=ends[2 * i * room : (2 * i + 1) * room],
                    actual_seq_kvlen=ends[(2 * i + 1) * room : (2 * i + 2) * room],
                    scalar_value=h**-0.5,
                    input_layout="TND",
                    sparse_mode=CAUSAL_FROM_THE_END,
                )
            outs = (*outs, out.reshape(-1, h))
        return self.sequence.join(outs)
