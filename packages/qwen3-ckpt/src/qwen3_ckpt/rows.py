"""Tensors as rows of bytes that are read in bounded pieces, so that no tensor is ever in memory whole.

A tensor of shape (d0, d1, ...) has d0 rows of d1 * d2 * ... elements; a scalar has one row. Whatever a merge
or conversion does (stack slices, join columns, pick rows, cast) is a source of rows that reads from others.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3_model.byte_writer import FileRange
from qwen3_model.fused import Run
from qwen3_model.safetensors_file import (
    NUMPY_DTYPES,
    SafetensorsFile,
    TensorPlan,
    from_float32,
    to_float32,
)

PIECE_BYTES = 4 << 20
Bytes = NDArray[np.uint8]


class RowSource(Protocol):
    """Something that gives rows of bytes."""

    num_rows: int
    row_bytes: int

    def read(self, start: int, stop: int) -> Bytes:
        """Return rows `start` to `stop` as uint8 (stop - start, row_bytes); may be a read-only view."""

    def ranges(self, start: int, stop: int) -> list[FileRange] | None:
        """Return the same rows as ranges of files, or None when they lie nowhere as they are."""


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that can be written without having been loaded."""

    plan: TensorPlan
    rows: RowSource

    def pieces(self, count: Callable[[float], None] = lambda _: None) -> Iterator[Bytes | FileRange]:
        """Yield the data in order, about PIECE_BYTES at a time or as ranges of files to copy.

        `count` hears of the bytes of each piece once it was used.
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


class FileRows:
    """The rows of a tensor in a file, as views of its memory map."""

    def __init__(self, file: SafetensorsFile, name: str) -> None:
        info = file.tensors[name]
        self.num_rows = info.shape[0] if info.shape else 1
        self.row_bytes = info.size_bytes // max(self.num_rows, 1)
        self._file, self._name = file, name

    def read(self, start: int, stop: int) -> Bytes:
        """Return a view."""
        raw = self._file.raw(self._name).reshape(-1).view(np.uint8)
        return raw[start * self.row_bytes : stop * self.row_bytes].reshape(stop - start, self.row_bytes)

    def ranges(self, start: int, stop: int) -> list[FileRange]:
        """Return the one range."""
        first = self._file.tensors[self._name].start + start * self.row_bytes
        return [FileRange(self._file.path, first, (stop - start) * self.row_bytes)]


class StackedRows:
    """Sources one below the other: slices along dimension 0."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        self._sources = sources
        self.num_rows = sum(source.num_rows for source in sources)
        self.row_bytes = sources[0].row_bytes

    def read(self, start: int, stop: int) -> Bytes:
        """Return a view when the rows lie in one source, else a copy."""
        return _stack([source.read(*window) for source, window in self._windows(start, stop)])

    def ranges(self, start: int, stop: int) -> list[FileRange] | None:
        """Return the sources' ranges, if all have them."""
        return _all_ranges(source.ranges(*window) for source, window in self._windows(start, stop))

    def _windows(self, start: int, stop: int) -> Iterator[tuple[RowSource, tuple[int, int]]]:
        offset = 0
        for source in self._sources:
            first, last = max(start - offset, 0), min(stop - offset, source.num_rows)
            if first < last:
                yield source, (first, last)
            offset += source.num_rows


class JoinedColumns:
    """Sources side by side: slices along dimension 1."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        self._sources = sources
        self.num_rows = sources[0].num_rows
        self.row_bytes = sum(source.row_bytes for source in sources)

    def read(self, start: int, stop: int) -> Bytes:
        """Return a copy."""
        return np.concatenate([source.read(start, stop) for source in self._sources], axis=1)

    def ranges(self, start: int, stop: int) -> None:
        """Return None: no row lies in one piece."""


class PickedRows:
    """Some rows of a source, in the order of `runs`."""

    def __init__(self, source: RowSource, runs: Sequence[Run]) -> None:
        self._source, self._runs = source, runs
        self.num_rows = sum(len(run) for run in runs)
        self.row_bytes = source.row_bytes

    def read(self, start: int, stop: int) -> Bytes:
        """Return a view when the rows are one run, else a copy."""
        return _stack(
            [self._source.read(run.start, run.stop)[:: run.step] for run in self._windows(start, stop)]
        )

    def ranges(self, start: int, stop: int) -> list[FileRange] | None:
        """Return the source's ranges, unless rows are skipped."""
        windows = list(self._windows(start, stop))
        if any(run.step != 1 for run in windows):
            return None
        return _all_ranges(self._source.ranges(run.start, run.stop) for run in windows)

    def _windows(self, start: int, stop: int) -> Iterator[Run]:
        offset = 0
        for run in self._runs:
            first, last = max(start - offset, 0), min(stop - offset, len(run))
            if first < last:
                yield Run(run.start + first * run.step, run.start + (last - 1) * run.step + 1, run.step)
            offset += len(run)


class PickedColumns:
    """Bytes `first` to `last` of every row of a source."""

    def __init__(self, source: RowSource, first: int, last: int) -> None:
        self._source, self._first, self._last = source, first, last
        self.num_rows, self.row_bytes = source.num_rows, last - first

    def read(self, start: int, stop: int) -> Bytes:
        """Return a view of the source's rows."""
        return self._source.read(start, stop)[:, self._first : self._last]

    def ranges(self, start: int, stop: int) -> None:
        """Return None: a range a row would be slower than a copy."""


class InterleavedRows:
    """Row i of each source in turn: a0, b0, a1, b1, ..."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        self._sources = sources
        self.num_rows = sum(source.num_rows for source in sources)
        self.row_bytes = sources[0].row_bytes

    def read(self, start: int, stop: int) -> Bytes:
        """Return a copy."""
        count = len(self._sources)
        first, last = start // count, -(-stop // count)
        woven = np.stack([source.read(first, last) for source in self._sources], axis=1)
        return woven.reshape(-1, self.row_bytes)[start - first * count : stop - first * count]

    def ranges(self, start: int, stop: int) -> None:
        """Return None: a range a row would be slower than a copy."""


class CastRows:
    """A float source in another float type; rounding is to nearest, ties to even."""

    def __init__(self, source: RowSource, old_dtype: str, new_dtype: str) -> None:
        self._source, self._old, self._new = source, old_dtype, new_dtype
        self.num_rows = source.num_rows
        self.row_bytes = (
            source.row_bytes // NUMPY_DTYPES[old_dtype].itemsize * NUMPY_DTYPES[new_dtype].itemsize
        )

    def read(self, start: int, stop: int) -> Bytes:
        """Return a copy."""
        raw = np.ascontiguousarray(self._source.read(start, stop)).view(NUMPY_DTYPES[self._old])
        return from_float32(to_float32(raw, self._old), self._new).view(np.uint8)

    def ranges(self, start: int, stop: int) -> None:
        """Return None: the bytes change."""


def row_windows(rows: RowSource, piece_bytes: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    """Yield windows of rows that together cover `rows`, each of about `piece_bytes`."""
    step = max(1, piece_bytes // max(rows.row_bytes, 1))
    for start in range(0, rows.num_rows, step):
        yield start, min(start + step, rows.num_rows)


def _stack(parts: list[Bytes]) -> Bytes:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
