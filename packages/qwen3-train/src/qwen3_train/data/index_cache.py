"""Indexes of samples on disk (`path_to_cache`): made by one process, mapped by all others.

A file is named by the hash of all that decides what is in it, and appears whole or not at all. Who finds it
missing locks, looks again, and makes it; where a file system knows no locks, several make the same file.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qwen3_model.errors import FormatError
from qwen3_model.file_map import advise_random, map_file
from qwen3_model.files import write_atomically
from qwen3_model.safetensors_file import NUMPY_DTYPES, TensorPlan, open_safetensors, write_safetensors

VERSION = 1
ENDS_BYTES = 1 << 20
"""Of a token file's index, hashed at either end."""
DTYPES = {"int32": "I32", "int64": "I64", "uint32": "U32"}
Arrays = Mapping[str, NDArray[Any]]


def cached(folder: Path | None, facts: object, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays that `make` makes, mapped from `folder` where they have been made before.

    Args:
        folder: Where they are kept; None to make them in memory.
        facts: All that decides what they are; its text counts.
        make: Returns them, of int32, int64 or uint32.

    Raises:
        OSError: The folder cannot be written.
    """
    if folder is None:
        return make()
    path = folder / f"{hashlib.sha256(repr((VERSION, facts)).encode()).hexdigest()[:32]}.safetensors"
    if (found := _mapped(path)) is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        if (found := _mapped(path)) is not None:
            return found
        arrays = make()
        entries = [
            (TensorPlan(name, DTYPES[values.dtype.name], values.shape), [values])
            for name, values in arrays.items()
        ]
        write_atomically(path, lambda temporary: write_safetensors(temporary, entries, {}))
    return _mapped(path) or arrays


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


def _mapped(path: Path) -> Arrays | None:
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
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that one process has at a time, where the file system knows locks."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        with suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
