"""Stored values of weights into arrays, without MindSpore: some rows at a time, on a few threads."""

import contextlib
import math
import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qwen3_model.checkpoints.tensors import TensorPart

# Elements read and converted at a time: what a core's cache holds.
CHUNK = 1 << 18
PIECE_BYTES = 4 << 20
NUM_THREADS = 2
LARGE_PAGE = 2 << 20

Values = np.ndarray | TensorPart
Piece = TypeVar("Piece")


def make_room(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an array of any values, a large one on pages of 2 MB where the system has them.

    A CPU that reads all weights for each token looks up a page for each 4 kB else, and reads a fifth slower.
    """
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if size_bytes < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(shape, dtype)
    # A page more, so that it can begin with one.
    num_bytes = (-(-size_bytes // LARGE_PAGE) + 1) * LARGE_PAGE
    room = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(room, np.uint8)
    start = -whole.ctypes.data % LARGE_PAGE
    return whole[start : start + size_bytes].view(dtype).reshape(shape)


def read_bits(values: Values, target: np.ndarray) -> None:
    """Read `values` into an array of their own type.

    Raises:
        FormatError: They lie in a file that has become shorter, or cannot be read.
    """
    ranges = values.ranges() if isinstance(values, TensorPart) else None
    if ranges is None:
        _convert_by_rows(_copy, values, target)
        return
    # Straight from the files: a copy in between would take as long as the reading.
    bytes_, pieces, at = target.reshape(-1).view(np.uint8), [], 0
    for part in ranges:
        for start in range(0, part.size_bytes, PIECE_BYTES):
            size = min(PIECE_BYTES, part.size_bytes - start)
            pieces.append((part.file, part.start + start, slice(at + start, at + start + size)))
        at += part.size_bytes
    assert at == target.nbytes, "the file has the values in the target's type"
    _run_in_threads(lambda piece: piece[0].read_into(piece[1], bytes_[piece[2]]), pieces)


def read_float32(dtype: str, values: Values, target: NDArray[np.float32]) -> None:
    """Read `values`, stored as safetensors' `dtype`, and widen them into `target`.

    Raises:
        FormatError: They lie in a file that has become shorter, or cannot be read.
    """
    _convert_by_rows(_widen_bf16 if dtype == "BF16" else _copy, values, target)


def _convert_by_rows(
    convert: Callable[[np.ndarray, np.ndarray], None], values: Values, target: np.ndarray
) -> None:
    """Convert some rows at a time, on a few threads; reading and numpy release the lock meanwhile."""
    if not values.shape:
        convert(np.asarray(values), target)
        return
    step = max(1, CHUNK * values.shape[0] // max(target.size, 1))
    pieces = [slice(start, min(start + step, values.shape[0])) for start in range(0, values.shape[0], step)]
    _run_in_threads(lambda piece: convert(np.asarray(values[piece]), target[piece]), pieces)


def _widen_bf16(bits: np.ndarray, target: np.ndarray) -> None:
    # A bfloat16 is the upper half of a float32.
    np.left_shift(bits, np.uint32(16), out=target.view(np.uint32), dtype=np.uint32)


def _copy(values: np.ndarray, target: np.ndarray) -> None:
    np.copyto(target, values)


def _run_in_threads(work: Callable[[Piece], None], pieces: Sequence[Piece]) -> None:
    if len(pieces) < NUM_THREADS:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(work, pieces))
