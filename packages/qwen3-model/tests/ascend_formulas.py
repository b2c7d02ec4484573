"""Ascend's fused operators as documented: what they accept, and their formula in float64.

`install` puts them in the place of MindSpore's, so that code which calls them runs on a CPU, op by op, and a
wrong shape, type, order or constant of an argument is refused or gives other numbers.
"""

import mindspore as ms
import numpy as np
from ascend_contracts import (
    HALVES,
    OPERATORS,
    check_flash_attention,
    check_flash_attention_of_documents,
    check_incre_flash_attention,
    check_kv_cache_scatter_update,
    check_rms_norm,
    check_rotary,
    check_swiglu,
    require,
)
from mindspore import Tensor, mint, ops


def float64(x):
    return x.astype(ms.float32).asnumpy().astype(np.float64)


def like(values, x):
    return Tensor(values.astype(np.float32)).astype(x.dtype)


def index_select(values, axis, places):
    """The same in bfloat16, which a CPU's own kernel does not know."""
    return ops.gather(values.astype(ms.float32), places, axis).astype(values.dtype)


def embedding(ids, weight):
    """The same with the CPU's own kernel."""
    return index_select(weight, 0, ids)


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attend(query, key, value, num_heads, hidden, scale):
    """softmax(scale * q k^T, without what is hidden) v; a K/V head serves N / K neighbouring query heads."""
    d = query.shape[2] // num_heads
    q, k, v = (float64(x).reshape(*x.shape[:2], -1, d) for x in (query, key, value))
    groups = q.shape[2] // k.shape[2]
    scores = np.einsum("blnh,bsnh->bnls", q, k.repeat(groups, 2)) * scale
    out = np.einsum("bnls,bsnh->blnh", softmax(np.where(hidden, -np.inf, scores)), v.repeat(groups, 2))
    return like(out.reshape(query.shape), query)


def attend_in_documents(query, key, value, attn_mask, ends, scale):
    """Each document by itself, in the causal order that is counted from its last query and its last key."""
    later = attn_mask.astype(ms.uint8).asnumpy()
    require(np.array_equal(later, np.triu(np.ones((2048, 2048)), 1)), "not the causal mask")
    tokens = np.arange(query.shape[0])
    for each in ends:
        require(list(each) == sorted(each) and each[-1] == len(tokens), "ends ascend to the last token")
    of_query, of_key = (np.searchsorted(np.array(each), tokens, side="right") for each in ends)
    hidden = (of_query[:, None] != of_key) | (tokens[:, None] < tokens)
    rows = [each.reshape(1, each.shape[0], -1) for each in (query, key, value)]
    return attend(*rows, query.shape[1], hidden, scale).reshape(query.shape)


class Formulas:
    """The operators; `halves` are the types that the attention ones take."""

    def __init__(self, halves=HALVES):
        self.halves, self.called = halves, []

    def install(self, monkeypatch):
        for name, (where, _) in OPERATORS.items():
            monkeypatch.setattr(where, name, getattr(self, name))
        monkeypatch.setattr(mint, "index_select", index_select)
        monkeypatch.setattr(mint.nn.functional, "embedding", embedding)
        return self

    def rms_norm(self, x, gamma, epsilon=1e-6):
        self.called.append("rms_norm")
        check_rms_norm(x, gamma, epsilon)
        values = float64(x)
        inverse = 1 / np.sqrt((values**2).mean(-1, keepdims=True) + epsilon)
        return like(values * inverse * float64(gamma), x), Tensor(inverse.astype(np.float32))

    def swiglu(self, x, dim=-1):
        self.called.append("swiglu")
        check_swiglu(x, dim)
        a, b = np.split(float64(x), 2, dim)
        return like(a / (1 + np.exp(-a)) * b, x)

    def rotary_position_embedding(self, x, cos, sin, mode=0):
        self.called.append("rotary_position_embedding")
        check_rotary(x, cos, sin, mode)
        values = float64(x)
        first, second = np.split(values, 2, -1)
        return like(values * float64(cos) + np.concatenate([-second, first], -1) * float64(sin), x)

    def flash_attention_score(
        self,
        query,
        key,
        value,
        head_num,
        *,
        attn_mask=None,
        actual_seq_qlen=None,
        actual_seq_kvlen=None,
        scalar_value=1.0,
        input_layout="BSH",
        sparse_mode=0,
    ):
        self.called.append("flash_attention_score")
        if input_layout == "TND":
            ends = (actual_seq_qlen, actual_seq_kvlen)
            check_flash_attention_of_documents(
                query, key, value, head_num, attn_mask, ends, sparse_mode, self.halves
            )
            return attend_in_documents(query, key, value, attn_mask, ends, scalar_value)
        check_flash_attention(query, key, value, head_num, attn_mask, input_layout, sparse_mode, self.halves)
        hidden = attn_mask.astype(ms.uint8).asnumpy() != 0
        if sparse_mode == 2:
            require(np.array_equal(hidden, np.triu(np.ones((2048, 2048), bool), 1)), "not the causal mask")
            hidden = hidden[: query.shape[1], : key.shape[1]]
        return attend(query, key, value, head_num, hidden, scalar_value)

    def incre_flash_attention(
        self, query, key, value, *, actual_seq_lengths=None, block_table=None, block_size=0, num_heads=1,
        input_layout="BSH", scale_value=1.0, num_key_value_heads=0,
    ):  # fmt: skip
        self.called.append("incre_flash_attention")
        check_incre_flash_attention(
            query, key, value, actual_seq_lengths, block_table, block_size, num_heads, input_layout,
            num_key_value_heads, self.halves,
        )  # fmt: skip
        lengths, table = np.array(actual_seq_lengths), block_table.asnumpy()
        slots = table.shape[1] * block_size
        require(lengths.min() >= 1 and lengths.max() <= slots, "incremental: lengths are 1 to S")
        require(table.min() >= 0 and table.max() < len(key[0]), "incremental: blocks are of the cache")
        keys, values = (
            like(float64(cache[0])[table].reshape(len(table), slots, -1), cache[0]) for cache in (key, value)
        )
        hidden = (np.arange(slots) >= lengths[:, None])[:, None, None]
        return attend(query, keys, values, num_heads, hidden, scale_value)

    def kv_cache_scatter_update(self, var, indices, updates, axis):
        self.called.append("kv_cache_scatter_update")
        check_kv_cache_scatter_update(var, indices, updates, axis, self.halves)
        held, new, places = float64(var), float64(updates), indices.asnumpy()
        for write, (block, at) in enumerate(places):
            require(0 <= block < len(held) and at >= 0, "cache: places lie in the cache")
            require(at + new.shape[1] <= held.shape[1], "cache: a write ends in its block")
            held[block, at : at + new.shape[1]] = new[write]
        require(len({tuple(place) for place in places}) == len(places), "cache: no place twice")
        var.set_data(like(held, var))
        return var
