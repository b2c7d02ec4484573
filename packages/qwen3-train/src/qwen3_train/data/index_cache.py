"""Indexes of samples on disk (`path_to_cache`): made by one process, mapped by all others.

A file is named by the hash of all that decides what is in it, and appears whole or not at all. Who finds it
missing locks, looks again, and makes it; where a file system knows no locks, several make the same file. It
is written piece by piece, so that no index has to be in memory whole.
"""

import fcntl
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.safetensors_file import NUMPY_DTYPES, TensorPlan, encode_header, open_safetensors
from qwen3_model.command.file_map import advise_random, map_file
from qwen3_model.command.files import write_atomically
from qwen3_model.errors import FormatError

VERSION = 1
ENDS_BYTES = 1 << 20
"""Bytes at either end of a token file's index that are hashed."""
WRITE_BYTES = 64 << 20
DTYPES = {"int32": "I32", "int64": "I64", "uint32": "U32"}
Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[type[np.integer], tuple[int, ...]]]
"""Type and shape of each array."""


class MemoryRoom:
    """Room for arrays in memory."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def lay_out(self, shapes: Shapes) -> None:
        """Make room, once, before anything is put."""
        self.arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in shapes.items()}

    def put(self, name: str, first: int, rows: np.ndarray) -> None:
        """Put rows of an array where they belong."""
        self.arrays[name][first : first + len(rows)] = rows


class FileRoom:
    """Room for arrays in a file."""

    def __init__(self, descriptor: int) -> None:
        """Take a new file, open for writing."""
        self._descriptor = descriptor
        self._arrays: dict[str, tuple[int, np.dtype[np.generic], int]] = {}

    def lay_out(self, shapes: Shapes) -> None:
        """Make room, once, before anything is put."""
        plans = [
            TensorPlan(name, DTYPES[np.dtype(dtype).name], shape) for name, (dtype, shape) in shapes.items()
        ]
        header = encode_header(plans, {})
        position = len(header)
        os.pwrite(self._descriptor, header, 0)
        for plan, (dtype, shape) in zip(plans, shapes.values(), strict=True):
            self._arrays[plan.name] = position, np.dtype(dtype), math.prod(shape[1:])
            position += plan.size_bytes
        os.ftruncate(self._descriptor, position)

    def put(self, name: str, first: int, rows: np.ndarray) -> None:
        """Put rows of an array where they belong."""
        start, dtype, width = self._arrays[name]
        data = np.ascontiguousarray(rows, dtype).reshape(-1).view(np.uint8).data
        at = start + first * width * dtype.itemsize
        while data:
            written = os.pwrite(self._descriptor, data[:WRITE_BYTES], at)
            data, at = data[written:], at + written


Room = MemoryRoom | FileRoom


def cached(folder: Path | None, facts: object, make: Callable[[Room], object]) -> Arrays:
    """Return the arrays that `make` makes, mapped from `folder` where they have been made before.

    Args:
        folder: Where they are kept; None to make them in memory.
        facts: All that decides what they are; its text counts.
        make: Puts them, of int32, int64 or uint32, into the room that it is given.

    Raises:
        OSError: The folder cannot be written.
    """
    if folder is None:
        room = MemoryRoom()
        make(room)
        return room.arrays
    path = folder / f"{hashlib.sha256(repr((VERSION, facts)).encode()).hexdigest()[:32]}.safetensors"
    if (found := _map_arrays(path)) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with _hold_lock(path.with_suffix(".lock")):
        if (found := _map_arrays(path)) is not None:
            return found
        write_atomically(path, lambda temporary: _fill(temporary, make))
    if (found := _map_arrays(path)) is None:
        raise FormatError(f"{path} was written, and is gone or damaged; see what removes files there")
    return found


def identity(prefix: Path) -> tuple[object, ...]:
    """Return what tells the index of a token file from that of another: size, time and both ends."""
    path = Path(f"{prefix}.idx")
    status = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(ENDS_BYTES))
        file.seek(max(0, status.st_size - ENDS_BYTES))
        digest.update(file.read(ENDS_BYTES))
    return status.st_size, status.st_mtime_ns, digest.hexdigest()


def _fill(path: Path, make: Callable[[Room], object]) -> None:
    with path.open("wb", buffering=0) as file:
        make(FileRoom(file.fileno()))


def _map_arrays(path: Path) -> Arrays | None:
    """Return the arrays of a file; None where it is missing or damaged."""
    with suppress(FileNotFoundError, FormatError):
        file = open_safetensors(path)
        whole = map_file(path, file.source.size_bytes)
        advise_random(whole)
        return {
            name: whole[info.start : info.end].view(NUMPY_DTYPES[info.dtype]).reshape(info.shape)
            for name, info in file.tensors.items()
        }
    return None


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Hold a lock that one process has at a time, where the file system knows locks."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        with suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
