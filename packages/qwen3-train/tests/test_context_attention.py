"""Attention of ranks that share a sequence, on both devices, against attention over the whole sequence.

Ascend's operator is computed by the formula of its documentation; the ranks take turns in one process.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from qwen3_train.data.batches import Batch
from qwen3_train.data.context_part import ContextPart
from qwen3_train.parallel.context import ContextAscendKernels, ContextPortableKernels

B, L, N, K, H = 2, 16, 4, 2, 4
ATOL = 1e-5  # float32 against float64; 2e-6 was seen
SEGMENTS = np.cumsum(np.random.default_rng(1).random((B, L)) < 0.25, axis=1).astype(np.int32)


@pytest.fixture(autouse=True)
def eager():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


class TurnsGroup:
    """A rank of `size` ranks, of which the others have had their turn."""

    def __init__(self, index, parts):
        self.index, self.size, self.parts = index, len(parts), parts

    def gather_rows(self, x):
        np.testing.assert_array_equal(x.asnumpy(), self.parts[self.index])
        return Tensor(np.concatenate(self.parts))


def softmax_attention(q_XNH, k_SKH, v_SKH, visible_XS):
    out = np.zeros(q_XNH.shape)
    for head in range(q_XNH.shape[1]):
        keys, values = (
            x[:, head // (q_XNH.shape[1] // x.shape[1])].astype(np.float64) for x in (k_SKH, v_SKH)
        )
        scores = q_XNH[:, head] @ keys.T * H**-0.5 + np.where(visible_XS, 0.0, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ values
    return out


def causal_from_the_end(queries, keys):
    assert queries <= keys
    return np.arange(keys) <= np.arange(queries)[:, None] + keys - queries


def documented_flash_attention(q, k, v, head_num, **told):
    """Mode 3 of aclnnFlashAttentionScore and aclnnFlashAttentionVarLenScore."""
    assert told["sparse_mode"] == 3
    assert told["attn_mask"].shape == (2048, 2048)
    q, k, v = (x.asnumpy().astype(np.float64) for x in (q, k, v))
    if told["input_layout"] == "BSH":
        heads = [x.reshape(*x.shape[:2], -1, H) for x in (q, k, v)]
        pairs = [tuple(x[row] for x in heads) for row in range(len(q))]
        outs = [softmax_attention(*p, causal_from_the_end(len(p[0]), len(p[1]))) for p in pairs]
        return Tensor(np.stack(outs).reshape(q.shape).astype(np.float32))
    assert told["input_layout"] == "TND"
    assert q.shape[1] == head_num
    ends = [np.array(told[name]) for name in ("actual_seq_qlen", "actual_seq_kvlen")]
    assert [int(each[-1]) for each in ends] == [len(q), len(k)]
    out, starts = np.zeros(q.shape), (0, 0)
    for end in zip(*ends, strict=True):
        own, keys = slice(starts[0], end[0]), slice(starts[1], end[1])
        visible = causal_from_the_end(end[0] - starts[0], end[1] - starts[1])
        if len(visible):
            out[own] = softmax_attention(q[own], k[keys], v[keys], visible)
        starts = end
    return Tensor(out.astype(np.float32))


def cut(x_BLW, index, size):
    """Take a rank's rows of (B, L, W), as its samples are cut."""
    numbers = np.arange(B * L, dtype=np.int32).reshape(B, L)
    part = ContextPart(index, size).part_of(Batch(numbers, numbers, numbers.astype(np.float32), None, None))
    return x_BLW.reshape(B * L, -1)[part.input_ids_BL.reshape(-1)]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("make", [ContextPortableKernels, ContextAscendKernels])
def test_parts_find_what_the_whole_sequence_finds(monkeypatch, make, is_packed, size):
    monkeypatch.setattr(ops, "flash_attention_score", documented_flash_attention)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((B, L, heads, H)).astype(np.float32) for heads in (N, K, K))
    visible = np.tril(np.ones((L, L), bool))[None].repeat(B, 0)
    if is_packed:
        visible &= SEGMENTS[:, :, None] == SEGMENTS[:, None]
    wanted = np.stack([softmax_attention(q[row], k[row], v[row], visible[row]) for row in range(B)])
    pairs = [np.concatenate([cut(k, i, size), cut(v, i, size)], -1) for i in range(size)]
    for index in range(size):
        kernels = make(TurnsGroup(index, pairs))
        table = Tensor(np.zeros((2 * B, L // (2 * size), H // 2), np.float32))
        segments = kernels.segments(SEGMENTS) if is_packed else None
        if is_packed:
            # A graph takes other tuples for constants, and is compiled anew for other documents.
            assert segments.__ms_mutable__
        plan = kernels.plan(table, table, segments, N, K)
        rows = [Tensor(cut(x, index, size).reshape(-1, H)) for x in (q, k, v)]
        found = kernels.attention(*rows, plan).asnumpy()
        np.testing.assert_allclose(found, cut(wanted, index, size).reshape(-1, H), rtol=0, atol=ATOL)
