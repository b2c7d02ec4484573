"""Where in a cache the tokens of requests lie, and the arguments by which a compiled step finds them.

Each of the three classes has the cache that its kernels want. Regions begin at multiples of `unit`; a piece
of a prompt has one of the lengths `pieces`.

B requests in a batch, R rows that are computed, L length, T tokens of a region, P blocks.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor

from qwen3_infer.engine.pooled_cache import BlockCopy, CacheCopy, PooledCache, slots
from qwen3_infer.native.kernels import NativeKernels
from qwen3_infer.steps.pieces import ALIGN, DEVICE_PIECES, PIECES, batch_size, round_up
from qwen3_model.config import Qwen3Config
from qwen3_model.network.cache import BLOCK_TOKENS, BlockCache
from qwen3_model.network.cache import Rows as CacheRows
from qwen3_model.network.kernels.ascend import AscendKernels
from qwen3_model.network.kernels.seam import Kernels

LEAST_BLOCKS, MORE_BLOCKS = 4, 4
"""Blocks that the attention of a prompt's piece is compiled for: so many, then so many times as many, ..."""

Batch = tuple[np.ndarray, np.ndarray, CacheRows]
"""Tokens and positions of the rows that are computed (R,), and the cache's argument for them."""


class Rows:
    """A row of one length for each request, all of which are computed: MindSpore's own operators on a CPU."""

    pieces: tuple[int, ...] = PIECES
    piece_unit = 1
    """Positions of pieces are multiples of it."""

    def __init__(
        self,
        kernels: Kernels,
        config: Qwen3Config,
        num_rows: int,
        context_tokens: int,
        num_tokens: int | None,
    ) -> None:
        # The slot after the longest request is where a row without a request writes.
        self.unit = round_up(context_tokens + 1, self.pieces[0])
        wanted = num_rows * self.unit if num_tokens is None else num_tokens
        self.num_rows = max(1, min(num_rows, wanted // self.unit))
        self.num_tokens = self.num_rows * self.unit
        self.longest = self.unit - 1
        self.cache = kernels.make_cache(config, self.num_rows, self.unit)

    def piece(self, start: int, position: int, length: int) -> CacheRows:
        """Return the cache's argument for a piece of the region at `start`."""
        return Tensor(np.array([start // self.unit], np.int32))

    def batch(self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray) -> Batch:
        """Return the rows that a token of each of B regions is computed with; `picked` finds theirs."""
        rows_B = starts_B // self.unit
        tokens_R = np.zeros(self.num_rows, np.int32)
        positions_R = np.full(self.num_rows, self.unit - 1, np.int32)
        tokens_R[rows_B], positions_R[rows_B] = tokens_B, positions_B
        return tokens_R, positions_R, None

    def picked(self, starts_B: np.ndarray) -> Sequence[int]:
        """Return which of the computed rows are those of B regions."""
        return (starts_B // self.unit).tolist()

    def warm_up_positions(self, length: int) -> Sequence[int]:
        """Return positions of a piece of this length that stand for all that it is compiled for."""
        return [0]

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Rows of one length are not copied."""
        raise AssertionError


class Pool:
    """Regions of any length side by side, for native kernels; a batch is computed at one of a few sizes."""

    pieces: tuple[int, ...] = PIECES
    unit = ALIGN
    piece_unit = 1
    """Positions of pieces are multiples of it."""

    def __init__(
        self,
        kernels: Kernels,
        config: Qwen3Config,
        num_rows: int,
        context_tokens: int,
        num_tokens: int | None,
    ) -> None:
        longest = round_up(context_tokens, self.unit)
        self.num_rows = num_rows
        wanted = num_rows * longest if num_tokens is None else num_tokens
        self.num_tokens = self.longest = round_up(max(wanted, longest), self.unit)
        self._make(kernels, config, context_tokens)

    def _make(self, kernels: Kernels, config: Qwen3Config, context_tokens: int) -> None:
        # The room behind all regions is where rows without a request write.
        self.cache = PooledCache(config, self.num_tokens + self.unit, kernels.compute_dtype)
        self._copy = ms.jit(CacheCopy(self.cache).construct)

    def piece(self, start: int, position: int, length: int) -> CacheRows:
        """Return the cache's argument for a piece of the region at `start`."""
        return Tensor(np.array([start], np.int32))

    def batch(self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray) -> Batch:
        """Return the rows that a token of each of B regions is computed with; `picked` finds theirs."""
        starts_R, tokens_R, positions_R = self._fill_rows(starts_B, tokens_B, positions_B)
        return tokens_R, positions_R, Tensor(starts_R)

    def picked(self, starts_B: np.ndarray) -> Sequence[int]:
        """Return which of the computed rows are those of B regions."""
        return range(len(starts_B))

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens`, a multiple of the shortest piece, of one region to another."""
        at = 0
        while at < num_tokens:
            length = next(piece for piece in self.pieces if piece <= num_tokens - at)
            self._copy_piece(source + at, target + at, length)
            at += length

    def warm_up_positions(self, length: int) -> Sequence[int]:
        """Return positions of a piece of this length that stand for all that it is compiled for."""
        return [0]

    def _copy_piece(self, source: int, target: int, length: int) -> None:
        self._copy(slots(source, length), slots(target, length)).asnumpy()

    def _fill_rows(
        self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        count = len(starts_B)
        filled = tuple(np.zeros(batch_size(count), np.int32) for _ in range(3))
        filled[0][count:] = self.num_tokens
        for target, values_B in zip(filled, (starts_B, tokens_B, positions_B), strict=True):
            target[:count] = values_B
        return filled


class Blocks(Pool):
    """The same in whole blocks, for an accelerator: each step names the blocks that a request has."""

    pieces = DEVICE_PIECES
    unit = piece_unit = BLOCK_TOKENS

    def _make(self, kernels: Kernels, config: Qwen3Config, context_tokens: int) -> None:
        self.cache = BlockCache(config, self.num_tokens // self.unit + 1, kernels.compute_dtype)
        self._most_blocks = round_up(context_tokens, self.unit) // self.unit
        self._copy = ms.jit(BlockCopy(self.cache).construct)

    def piece(self, start: int, position: int, length: int) -> CacheRows:
        """Return the cache's argument for a piece: the blocks it fills, and those of its prompt so far."""
        first, count = start // self.unit, (position + length) // self.unit
        # What lies behind the piece is hidden from it; the region's own first block stands there as well as
        # any.
        blocks_P = np.full(self.num_blocks(count), first, np.int32)
        blocks_P[:count] = np.arange(first, first + count)
        return ms.mutable((Tensor(self._list_blocks(start + position, length)), Tensor(blocks_P)))

    def num_blocks(self, count: int) -> int:
        """Return for how many blocks the attention of a piece is compiled that needs `count`."""
        size = LEAST_BLOCKS
        while size < count:
            size *= MORE_BLOCKS
        return max(count, min(size, self._most_blocks))

    def batch(self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray) -> Batch:
        """Return the rows that a token of each of B regions is computed with; `picked` finds theirs."""
        starts_R, tokens_R, positions_R = self._fill_rows(starts_B, tokens_B, positions_B)
        blocks_R1 = (starts_R // self.unit)[:, None]
        # Lengths say where a row ends; what follows in the list is never read, but must be there.
        table_RP = np.minimum(blocks_R1 + np.arange(self._most_blocks), self.num_tokens // self.unit)
        at_R = starts_R + positions_R
        writes_R2 = np.stack((at_R // self.unit, at_R % self.unit), 1)
        # Integers of the host: as a tensor of the device they would be fetched back in every layer.
        lengths = tuple(int(position) + 1 for position in positions_R)
        # Without `mutable` each new value would be compiled anew.
        where = ms.mutable((Tensor(writes_R2), Tensor(table_RP.astype(np.int32)), lengths))
        return tokens_R, positions_R, where

    def warm_up_positions(self, length: int) -> Sequence[int]:
        """Return positions of a piece of this length that stand for all that it is compiled for."""
        ends = {self.num_blocks(count): count for count in range(length // self.unit, self._most_blocks + 1)}
        return [count * self.unit - length for count in ends.values()]

    def _copy_piece(self, source: int, target: int, length: int) -> None:
        source_C = np.arange(source, source + length, self.unit, dtype=np.int32) // self.unit
        self._copy(Tensor(source_C), Tensor(self._list_blocks(target, length)))

    def _list_blocks(self, start: int, length: int) -> np.ndarray:
        """Whole blocks from the token `start` of the cache on, and the 0 in each."""
        blocks = np.arange(start, start + length, self.unit, dtype=np.int32) // self.unit
        return np.stack((blocks, np.zeros_like(blocks)), 1)


Rooms = Rows | Pool | Blocks
ROOMS: tuple[tuple[type[Pool], type], ...] = ((Pool, NativeKernels), (Blocks, AscendKernels))


def make_rooms(
    kernels: Kernels, config: Qwen3Config, num_rows: int, context_tokens: int, num_tokens: int | None = None
) -> Rooms:
    """Return the rooms that fit `kernels`.

    Args:
        kernels: The model's kernels.
        config: With the heads that this rank has.
        num_rows: Most requests that run at once.
        context_tokens: The longest, prompt and completion together.
        num_tokens: Room of the cache; enough for `num_rows` of the longest when None.
    """
    make = next((kind for kind, of in ROOMS if isinstance(kernels, of)), Rows)
    return make(kernels, config, num_rows, context_tokens, num_tokens)


def room_unit(kernels: Kernels) -> int | None:
    """Return the unit in which requests get room as they need it; None where all have the same."""
    return next((kind.unit for kind, of in ROOMS if isinstance(kernels, of)), None)
