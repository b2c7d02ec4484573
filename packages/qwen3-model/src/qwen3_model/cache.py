"""Keys and values of the tokens seen so far, written in place inside a compiled graph.

A row's token at position p lies in slot p of that row, and a query at position p sees slots 0 to p. So rows
may have any lengths and move at their own pace: short prompts are filled up on the right with any id at any
free later position, and what such filling wrote is overwritten before a real query can see it.

B rows, T slots, K key/value heads, H head_dim, L new tokens a row, R head rows (B * K * L).
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, mint, nn, ops

from qwen3_model.config import Qwen3Config


class KVCache(nn.Cell):
    """Room for `capacity` tokens in each of `num_rows` rows, for every layer."""

    def __init__(
        self, config: Qwen3Config, num_rows: int, capacity: int, dtype: ms.Type = ms.float32
    ) -> None:
        super().__init__()
        self.num_rows, self.capacity = num_rows, capacity
        shape = self._shape(config)
        layers = range(config.num_layers)
        self.keys = ParameterTuple([_slots(f"cache.keys.{i}", shape, dtype) for i in layers])
        self.values = ParameterTuple([_slots(f"cache.values.{i}", shape, dtype) for i in layers])
        starts = np.arange(num_rows * config.num_kv_heads, dtype=np.int32) * capacity
        self._starts_BK1 = Tensor(starts.reshape(num_rows, config.num_kv_heads, 1))
        self._slots_T = Tensor(np.arange(capacity, dtype=np.int32))

    def _shape(self, config: Qwen3Config) -> tuple[int, ...]:
        return self.num_rows * config.num_kv_heads * self.capacity, config.head_dim

    def places(self, position_ids_BL: Tensor, rows_B: Tensor | None = None) -> tuple:
        """Return where new tokens go and what they see, the same for every layer.

        Returns:
            The flat slot of each new token of each head, int32 of shape (B * K * L,); `rows_B`, int32, the
            rows that are used, None for all in their order; the positions.
        """
        starts_BK1 = self._starts_BK1 if rows_B is None else ops.gather(self._starts_BK1, rows_B, 0)
        return (starts_BK1 + position_ids_BL[:, None, :]).reshape(-1), rows_B, position_ids_BL

    def visible(self, position_ids_BL: Tensor) -> Tensor:
        """Return which slots each query sees, bool of shape (B, L, T)."""
        return mint.less_equal(self._slots_T, position_ids_BL[:, :, None])


class TokenCache(KVCache):
    """The same with all heads of a token side by side, (B, T, K, H), as Ascend's operators have them."""

    def __init__(
        self, config: Qwen3Config, num_rows: int, capacity: int, dtype: ms.Type = ms.float32
    ) -> None:
        super().__init__(config, num_rows, capacity, dtype)
        self._starts_B1 = Tensor(np.arange(num_rows, dtype=np.int32).reshape(-1, 1) * capacity)

    def _shape(self, config: Qwen3Config) -> tuple[int, ...]:
        return self.num_rows, self.capacity, config.num_kv_heads, config.head_dim

    def places(self, position_ids_BL: Tensor, rows_B: Tensor | None = None) -> tuple:
        """Return where new tokens go and what they see, the same for every layer.

        Returns:
            The flat slot of each new token, int32 of shape (B * L,); `rows_B` as given; how many slots each
            query sees, int64 of shape (B, L).
        """
        starts_B1 = self._starts_B1 if rows_B is None else ops.gather(self._starts_B1, rows_B, 0)
        return (starts_B1 + position_ids_BL).reshape(-1), rows_B, (position_ids_BL + 1).astype(ms.int64)


def write_and_read(cache: Parameter, places: tuple, new_RH: Tensor, num_rows: int) -> Tensor:
    """Put new rows, in the order (B, K, L), into their slots and return the rows in use, (B * K * T, H).

    `num_rows` is that of the whole cache.
    """
    slots, rows_B, _ = places
    written = ops.depend(cache, ops.scatter_update(cache, slots, new_RH))
    if rows_B is None:
        return written
    return ops.gather(written.reshape(num_rows, -1), rows_B, 0).reshape(-1, new_RH.shape[1])


def _slots(name: str, shape: tuple[int, ...], dtype: ms.Type) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32), dtype=dtype), name=name, requires_grad=False)
