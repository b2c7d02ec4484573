"""A cache of tokens in which every request has a region of any length, without gaps.

B requests, L new tokens each, K key/value heads, N tokens of the cache, H head_dim, C copied tokens.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn, ops

from qwen3_model.config import Qwen3Config
from qwen3_model.network.cache import BlockCache, KVCache, Slots


class PooledCache(KVCache):
    """One row of `num_tokens` per head; for kernels that find a request's tokens by its first slot."""

    def __init__(self, config: Qwen3Config, num_tokens: int, dtype: ms.Type = ms.float32) -> None:
        super().__init__(config, 1, num_tokens, dtype)

    def slots(self, position_ids_BL: Tensor, rows_B: Tensor | None = None) -> Slots:
        """Return where new tokens are written; `rows_B` are the first tokens of the requests' regions."""
        assert rows_B is not None, "every request has a region"
        starts_BK1 = self._starts_BK1 + rows_B.reshape(-1, 1, 1)
        return (starts_BK1 + position_ids_BL[:, None, :]).reshape(-1), rows_B, position_ids_BL


class CacheCopy(nn.Cell):
    """Copies tokens of one region to another, in every layer; compile `construct` once per C."""

    def __init__(self, cache: PooledCache) -> None:
        super().__init__()
        self.cache = cache
        self.starts_K1 = Tensor(cache._starts_BK1.asnumpy()[0])

    def construct(self, source_C: Tensor, target_C: Tensor) -> Tensor:
        """Copy the tokens `source_C` of the cache, int32, to `target_C`, of which none is among them."""
        source, target = (self.starts_K1 + source_C).reshape(-1), (self.starts_K1 + target_C).reshape(-1)
        done = target
        for layer in (*self.cache.keys, *self.cache.values):
            done = ops.depend(done, ops.scatter_update(layer, target, ops.gather(layer, source, 0)))
        return done


class BlockCopy(nn.Cell):
    """Copies blocks to others, in every layer; compile `construct` once per C."""

    def __init__(self, cache: BlockCache) -> None:
        super().__init__()
        self.cache = cache

    def construct(self, source_C: Tensor, target_C2: Tensor) -> Tensor:
        """Copy the blocks `source_C` to `target_C2`, each with the 0 of its first token, all int32."""
        done = target_C2
        for layer in (*self.cache.keys, *self.cache.values):
            copied = mint.index_select(layer, 0, source_C)
            done = ops.depend(done, ops.auto_generate.kv_cache_scatter_update(layer, target_C2, copied, 1))
        return done


def slots(start: int, length: int) -> Tensor:
    """Return consecutive tokens of the cache."""
    return Tensor(np.arange(start, start + length, dtype=np.int32))
