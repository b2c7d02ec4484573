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
    check_incre_flash_attention,
    check_reshape_and_cache,
    check_rms_norm,
    check_rotary,
    check_swiglu,
    require,
)
from mindspore import Tensor, ops


def float64(x):
    return x.astype(ms.float32).asnumpy().astype(np.float64)


def like(values, x):
    return Tensor(values.astype(np.float32)).astype(x.dtype)


def gather(values, places, axis, take=ops.gather):
    """The same in bfloat16, which a CPU's own kernel does not know."""
    return take(values.astype(ms.float32), places, axis).astype(values.dtype)


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


class Formulas:
    """The operators; `halves` are the types that the attention ones take."""

    def __init__(self, halves=HALVES):
        self.halves, self.called = halves, []

    def install(self, monkeypatch):
        for name, (where, _) in OPERATORS.items():
            monkeypatch.setattr(where, name, getattr(self, name))
        monkeypatch.setattr(ops, "gather", gather)
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
        scalar_value=1.0,
        input_layout="BSH",
        sparse_mode=0,
    ):
        self.called.append("flash_attention_score")
        check_flash_attention(query, key, value, head_num, attn_mask, input_layout, sparse_mode, self.halves)
        hidden = attn_mask.astype(ms.uint8).asnumpy() != 0
        if sparse_mode == 2:
            require(np.array_equal(hidden, np.triu(np.ones((2048, 2048), bool), 1)), "not the causal mask")
            hidden = hidden[: query.shape[1], : key.shape[1]]
        return attend(query, key, value, head_num, hidden, scalar_value)

    def incre_flash_attention(
        self, query, key, value, *, actual_seq_lengths=None, num_heads=1, input_layout="BSH", scale_value=1.0,
        num_key_value_heads=0,
    ):  # fmt: skip
        self.called.append("incre_flash_attention")
        check_incre_flash_attention(
            query, key, value, actual_seq_lengths, num_heads, input_layout, num_key_value_heads, self.halves
        )
        lengths, slots = actual_seq_lengths.asnumpy(), key[0].shape[1]
        require(lengths.min() >= 1 and lengths.max() <= slots, "incremental: lengths are 1 to S")
        hidden = (np.arange(slots) >= lengths[:, None])[:, None, None]
        return attend(query, key[0], value[0], num_heads, hidden, scale_value)

    def reshape_and_cache(self, key, value, key_cache, value_cache, slot_mapping):
        self.called.append("reshape_and_cache")
        check_reshape_and_cache(key, value, key_cache, value_cache, slot_mapping, self.halves)
        (blocks, size, n, d), slots = key_cache.shape, slot_mapping.asnumpy()
        require(slots.min() >= 0 and slots.max() < blocks * size, "cache: slots lie in the cache")
        for new, cache in ((key, key_cache), (value, value_cache)):
            held = float64(cache).reshape(blocks * size, n, d)
            held[slots] = float64(new).reshape(-1, n, d)
            cache.set_data(like(held.reshape(cache.shape), cache))
        return key
