"""Keys and values of the tokens seen so far, written in place inside a compiled graph.

A row's token at position p lies in slot p of that row, and a query at position p sees slots 0 to p. So rows
may have any lengths and move at their own pace: short prompts are filled up on the right with any id at any
free later position, and what such filling wrote is overwritten before a real query can see it.

B rows, T slots, K key/value heads, H head_dim, L new tokens a row, R head rows (B * K * L), P blocks of a
row, W writes.
"""

from typing import Final, TypeAlias

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, mint, nn, ops

from qwen3_model.config import Qwen3Config
from qwen3_model.network.forms import DeviceForm

BLOCK_TOKENS = 128
"""Tokens of a block of an accelerator's cache: what the documentation of its attention recommends."""
Rows: TypeAlias = DeviceForm
"""Which rows of a cache are continued, in the form that the cache takes; None for all."""
Slots = tuple[Tensor, ...]
"""Where new tokens are written and what they see, as `slots` of a cache returns it."""
WRITES: Final = 0
BLOCKS: Final = 1
LENGTHS: Final = 2
"""The fields of a `BlockCache`'s slots; a piece of a prompt has the first two."""
LayerCache = tuple[Parameter, Parameter, int, Slots]
"""A layer's keys and values, the rows of the whole cache, and the slots of the new tokens."""


class KVCache(nn.Cell):
    """Room for `capacity` tokens in each of `num_rows` rows, for every layer."""

    def __init__(
        self, config: Qwen3Config, num_rows: int, capacity: int, dtype: ms.Type = ms.float32
    ) -> None:
        super().__init__()
        self.num_rows, self.capacity = num_rows, capacity
        shape = self._shape(config)
        layers = range(config.num_layers)
        self.keys = ParameterTuple([_empty(f"cache.keys.{i}", shape, dtype) for i in layers])
        self.values = ParameterTuple([_empty(f"cache.values.{i}", shape, dtype) for i in layers])
        starts = np.arange(num_rows * config.num_kv_heads, dtype=np.int32) * capacity
        self._starts_BK1 = Tensor(starts.reshape(num_rows, config.num_kv_heads, 1))
        self._slots_T = Tensor(np.arange(capacity, dtype=np.int32))

    def _shape(self, config: Qwen3Config) -> tuple[int, ...]:
        return self.num_rows * config.num_kv_heads * self.capacity, config.head_dim

    def slots(self, position_ids_BL: Tensor, rows_B: Rows = None) -> Slots:
        """Return where new tokens are written and what they see, the same for every layer.

        Returns:
            The flat slot of each new token of each head, int32 of shape (B * K * L,); `rows_B`, int32, the
            rows that are used, None for all in their order; the positions.
        """
        starts_BK1 = self._starts_BK1 if rows_B is None else ops.gather(self._starts_BK1, rows_B, 0)
        return (starts_BK1 + position_ids_BL[:, None, :]).reshape(-1), rows_B, position_ids_BL

    def visible(self, position_ids_BL: Tensor, rows_B: Rows = None) -> Tensor | None:
        """Return which slots each query sees, bool of shape (B, L, T); None where lengths alone say it."""
        return mint.less_equal(self._slots_T, position_ids_BL[:, :, None])


class BlockCache(KVCache):
    """Blocks of `block_tokens` tokens, (blocks, tokens, K * H), of which a row has those that a list names.

    Ascend's operators read such a cache where it is. The caller says where tokens are written and whose they
    are:

    * a piece of one prompt fills whole blocks: `(writes_W2, blocks_P)`, the block and the 0 of each that is
      written, and all blocks up to its end and perhaps more, int32;
    * a token for each of B rows: `(writes_B2, blocks_BP, lengths)`, the block and the slot in it of each new
      token, each row's blocks from its first token on, int32, and as integers how many tokens it then has.
    """

    def __init__(
        self,
        config: Qwen3Config,
        num_blocks: int,
        dtype: ms.Type = ms.bfloat16,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        super().__init__(config, num_blocks, block_tokens, dtype)

    def _shape(self, config: Qwen3Config) -> tuple[int, ...]:
        return self.num_rows, self.capacity, config.num_kv_heads * config.head_dim

    def slots(self, position_ids_BL: Tensor, rows_B: Rows = None) -> Slots:
        """Return `rows_B`, the slots that the caller states."""
        return rows_B

    def visible(self, position_ids_BL: Tensor, rows_B: Rows = None) -> Tensor | None:
        """Return which tokens of a prompt's blocks each query of a piece sees, bool (1, L, P * tokens)."""
        if position_ids_BL.shape[1] == 1:
            return None
        slots_S = Tensor(np.arange(rows_B[BLOCKS].shape[0] * self.capacity, dtype=np.int32))
        return mint.less_equal(slots_S, position_ids_BL.expand_dims(2))


def write_and_read(cache: Parameter, slots: Slots, new_RH: Tensor, num_rows: int) -> Tensor:
    """Put new rows, in the order (B, K, L), into their slots and return the rows in use, (B * K * T, H).

    `num_rows` is that of the whole cache.
    """
    written_R, rows_B, _ = slots
    written = ops.depend(cache, ops.scatter_update(cache, written_R, new_RH))
    if rows_B is None:
        return written
    return ops.gather(written.reshape(num_rows, -1), rows_B, 0).reshape(-1, new_RH.shape[1])


def _empty(name: str, shape: tuple[int, ...], dtype: ms.Type) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32), dtype=dtype), name=name, requires_grad=False)
