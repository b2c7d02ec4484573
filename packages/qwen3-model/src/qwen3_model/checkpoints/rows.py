"""Tensors as rows of bytes that are read in bounded pieces, so that no tensor must be in memory whole.

A tensor of shape (d0, d1, ...) has d0 rows of d1 * d2 * ... elements; a scalar has one row. Whatever is done
to one (stack slices, join columns, pick rows, cast) is a source of rows that reads from others.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3_model.checkpoints.byte_writer import FileRange
from qwen3_model.checkpoints.safetensors_file import (
    NUMPY_DTYPES,
    SafetensorsFile,
    TensorPlan,
    from_float32,
    to_float32,
)

PIECE_BYTES = 512 << 10
"""Small enough that the allocator keeps a piece instead of asking the system for new pages each time."""
NARROW_BYTES = 1024
"""Columns of a row from here on are worth a read of their own."""
Bytes = NDArray[np.uint8]
Slices = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Rows start, start + step, ... below stop."""

    start: int
    stop: int
    step: int = 1

    def __len__(self) -> int:
        return len(range(self.start, self.stop, self.step))


class RowSource(Protocol):
    """Rows of bytes that are read when asked for."""

    num_rows: int
    row_bytes: int

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return bytes `first` to `last` of rows `start` to `stop`, uint8; it may be read-only."""
        ...

    def ranges(self, start: int, stop: int) -> list[FileRange] | None:
        """Return where whole rows lie in files; None where no file has them as they are."""
        ...

    def files(self) -> Iterator[tuple[SafetensorsFile, str]]:
        """Yield each file that rows are read from, and the tensor's name in it."""
        ...


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that can be read in parts, or written without having been loaded."""

    plan: TensorPlan
    rows: RowSource

    def pieces(self, count: Callable[[float], None] = lambda _: None) -> Iterator[Bytes | FileRange]:
        """Yield the data in order, about PIECE_BYTES at a time or as ranges of files to copy.

        Args:
            count: Called with the bytes of each piece once the piece was used.
        """
        ranges = self.rows.ranges(0, self.rows.num_rows)
        if ranges is not None:
            for part in ranges:
                yield part
                count(part.size_bytes)
            return
        for window in row_windows(self.rows):
            piece = self.rows.read(*window)
            yield piece
            count(piece.nbytes)

    def renamed(self, name: str) -> "LazyTensor":
        """Return the same data under another name."""
        return LazyTensor(TensorPlan(name, self.plan.dtype, self.plan.shape), self.rows)

    def read(self, wanted: Slices | None = None) -> NDArray[np.generic]:
        """Return the slices `wanted`, or all, in the file's element type; see `SafetensorsFile.raw`."""
        dtype, shape = NUMPY_DTYPES[self.plan.dtype], self.plan.shape
        if wanted is None:
            wanted = tuple(slice(0, size) for size in shape)
        rows, columns = (*wanted, slice(0, 1), slice(0, 1))[:2]
        size = dtype.itemsize * math.prod(shape[2:])
        data = self.rows.read(rows.start, rows.stop, columns.start * size, columns.stop * size)
        lengths = [part.stop - part.start for part in wanted[:2]]
        part = (data.view(dtype) if data.size else np.empty(0, dtype)).reshape([*lengths, *shape[2:]])
        return part[(slice(None), slice(None), *wanted[2:])] if len(shape) > 2 else part


class FileRows:
    """The rows of a tensor in a file."""

    def __init__(self, file: SafetensorsFile, name: str) -> None:
        info = file.tensors[name]
        self.num_rows = info.shape[0] if info.shape else 1
        self.row_bytes = info.size_bytes // max(self.num_rows, 1)
        self._file, self._name = file, name

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return a view of what was read, or of narrow columns a copy that reads nothing beside them."""
        width = self.row_bytes
        begin, end, _ = slice(first, last).indices(width)
        if NARROW_BYTES <= end - begin <= width // 2:
            narrow = np.empty((stop - start, end - begin), np.uint8)
            for row in range(start, stop):
                narrow[row - start] = self._file.read(self._name, row * width + begin, row * width + end)
            return narrow
        whole = self._file.read(self._name, start * width, stop * width).reshape(stop - start, width)
        return whole[:, first:last]

    def ranges(self, start: int, stop: int) -> list[FileRange]:
        """Return the one range."""
        begin = self._file.tensors[self._name].start + start * self.row_bytes
        return [FileRange(self._file.source, begin, (stop - start) * self.row_bytes)]

    def files(self) -> Iterator[tuple[SafetensorsFile, str]]:
        """Yield the file."""
        yield self._file, self._name


class ConstantRows:
    """Rows in memory."""

    def __init__(self, values: NDArray[np.generic]) -> None:
        self._bytes = np.ascontiguousarray(values).view(np.uint8)
        self.num_rows, self.row_bytes = self._bytes.shape

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return a view."""
        return self._bytes[start:stop, first:last]

    def ranges(self, start: int, stop: int) -> None:
        """Return None: no file has the rows."""
        return

    def files(self) -> Iterator[tuple[SafetensorsFile, str]]:
        """Return an empty iterator: no file has the rows."""
        return iter(())


class _Combined:
    """Rows that are made of those of other sources."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        self._sources = sources

    def ranges(self, start: int, stop: int) -> list[FileRange] | None:
        """Return None, as most of them must: no file has the bytes of such a row in one piece."""
        return None

    def files(self) -> Iterator[tuple[SafetensorsFile, str]]:
        """Yield the sources' files."""
        for source in self._sources:
            yield from source.files()


class StackedRows(_Combined):
    """The rows of each source, one source below the other: slices along dimension 0."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        super().__init__(sources)
        self.num_rows = sum(source.num_rows for source in sources)
        self.row_bytes = sources[0].row_bytes

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return a view when the rows lie in one source, else a copy."""
        parts = [source.read(*window, first, last) for source, window in self._windows(start, stop)]
        return _join(parts, 0) if parts else np.empty((0, len(range(self.row_bytes)[first:last])), np.uint8)

    def ranges(self, start: int, stop: int) -> list[FileRange] | None:
        """Return the sources' ranges; None unless all have them."""
        return _all_ranges(source.ranges(*window) for source, window in self._windows(start, stop))

    def _windows(self, start: int, stop: int) -> Iterator[tuple[RowSource, tuple[int, int]]]:
        offset = 0
        for source in self._sources:
            begin, end = max(start - offset, 0), min(stop - offset, source.num_rows)
            if begin < end:
                yield source, (begin, end)
            offset += source.num_rows


class JoinedColumns(_Combined):
    """The columns of each source, side by side: slices along dimension 1."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        super().__init__(sources)
        self.num_rows = sources[0].num_rows
        self.row_bytes = sum(source.row_bytes for source in sources)

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return a view when the columns lie in one source, else a copy."""
        last, offset, parts = self.row_bytes if last is None else last, 0, []
        for source in self._sources:
            begin, end = max(first - offset, 0), min(last - offset, source.row_bytes)
            if begin < end:
                parts.append(source.read(start, stop, begin, end))
            offset += source.row_bytes
        return _join(parts, 1) if parts else np.empty((stop - start, 0), np.uint8)


class PickedRows(_Combined):
    """Some rows of a source, in the order of `runs`."""

    def __init__(self, source: RowSource, runs: Sequence[Run]) -> None:
        super().__init__([source])
        self._source, self._runs = source, runs
        self.num_rows = sum(len(run) for run in runs)
        self.row_bytes = source.row_bytes

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return a view when the rows are one run, else a copy."""
        parts = [
            self._source.read(run.start, run.stop, first, last)[:: run.step]
            for run in self._windows(start, stop)
        ]
        return _join(parts, 0) if parts else self._source.read(0, 0, first, last)

    def ranges(self, start: int, stop: int) -> list[FileRange] | None:
        """Return the source's ranges, unless rows are skipped."""
        windows = list(self._windows(start, stop))
        if any(run.step != 1 for run in windows):
            return None
        return _all_ranges(self._source.ranges(run.start, run.stop) for run in windows)

    def _windows(self, start: int, stop: int) -> Iterator[Run]:
        offset = 0
        for run in self._runs:
            begin, end = max(start - offset, 0), min(stop - offset, len(run))
            if begin < end:
                yield Run(run.start + begin * run.step, run.start + (end - 1) * run.step + 1, run.step)
            offset += len(run)


class PickedColumns(_Combined):
    """Bytes `begin` to `end` of every row of a source."""

    def __init__(self, source: RowSource, begin: int, end: int) -> None:
        super().__init__([source])
        self._source, self._begin = source, begin
        self.num_rows, self.row_bytes = source.num_rows, end - begin

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return those bytes of the source's rows."""
        last = self.row_bytes if last is None else last
        return self._source.read(start, stop, self._begin + first, self._begin + last)


class InterleavedRows(_Combined):
    """Row i of each source in turn: a0, b0, a1, b1, ..."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        super().__init__(sources)
        self.num_rows = sum(source.num_rows for source in sources)
        self.row_bytes = sources[0].row_bytes

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return a copy."""
        count = len(self._sources)
        begin, end = start // count, -(-stop // count)
        woven = np.stack([source.read(begin, end, first, last) for source in self._sources], axis=1)
        return woven.reshape(count * (end - begin), -1)[start - begin * count : stop - begin * count]


class CastRows(_Combined):
    """A float source in another float type; rounding is to nearest, ties to even."""

    def __init__(self, source: RowSource, old_dtype: str, new_dtype: str) -> None:
        super().__init__([source])
        self._source, self._old, self._new = source, old_dtype, new_dtype
        self._old_size, self._new_size = NUMPY_DTYPES[old_dtype].itemsize, NUMPY_DTYPES[new_dtype].itemsize
        self.num_rows = source.num_rows
        self.row_bytes = source.row_bytes // self._old_size * self._new_size

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return a copy."""
        last = self.row_bytes if last is None else last
        window = (first // self._new_size * self._old_size, last // self._new_size * self._old_size)
        raw = np.ascontiguousarray(self._source.read(start, stop, *window)).view(NUMPY_DTYPES[self._old])
        return from_float32(to_float32(raw, self._old), self._new).view(np.uint8)


def row_windows(rows: RowSource, piece_bytes: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    """Yield windows of rows that together cover `rows`, each of about `piece_bytes`."""
    step = max(1, piece_bytes // max(rows.row_bytes, 1))
    for start in range(0, rows.num_rows, step):
        yield start, min(start + step, rows.num_rows)


def equal_rows(left: RowSource, right: RowSource) -> bool:
    """Return whether two sources have the same bytes, which are read a window at a time."""
    if (left.num_rows, left.row_bytes) != (right.num_rows, right.row_bytes):
        return False
    return all(np.array_equal(left.read(*window), right.read(*window)) for window in row_windows(left))


def _join(parts: list[Bytes], axis: int) -> Bytes:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def _all_ranges(parts: Iterable[list[FileRange] | None]) -> list[FileRange] | None:
    found: list[FileRange] = []
    for part in parts:
        if part is None:
            return None
        found += part
    return found


def from_file(file: SafetensorsFile, name: str) -> LazyTensor:
    """Return a tensor of a file."""
    info = file.tensors[name]
    return LazyTensor(TensorPlan(name, info.dtype, info.shape), FileRows(file, name))


def cast(tensor: LazyTensor, dtype: str) -> LazyTensor:
    """Return the tensor in another float type."""
    plan = tensor.plan
    if plan.dtype == dtype:
        return tensor
    return LazyTensor(TensorPlan(plan.name, dtype, plan.shape), CastRows(tensor.rows, plan.dtype, dtype))
