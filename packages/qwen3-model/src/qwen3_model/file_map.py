"""Files mapped into memory without keeping them open, so that thousands of them need no file descriptors."""

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAP_FAILED = ctypes.c_void_p(-1).value


def map_file(path: Path, size_bytes: int) -> NDArray[Any]:
    """Return the first `size_bytes` of a file as a read-only array of bytes.

    numpy.memmap and Python's mmap keep a descriptor of each file for as long as the map lives.

    Args:
        path: A regular file of at least `size_bytes`.
        size_bytes: What to map.

    Raises:
        OSError: The file cannot be opened or mapped.
    """
    if size_bytes == 0:
        return np.empty(0, dtype=np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        address = libc.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    finally:
        os.close(descriptor)
    if address == MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    mapped = (ctypes.c_ubyte * size_bytes).from_address(address)
    # Every array made of it keeps `mapped` alive.
    weakref.finalize(mapped, libc.munmap, address, size_bytes)
    array = np.frombuffer(memoryview(mapped), dtype=np.uint8)
    array.flags.writeable = False
    return array


def advise_random(mapped: NDArray[Any]) -> None:
    """Tell the system that a mapped array is read here and there, so that it reads no pages ahead."""
    if mapped.nbytes == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    first = mapped.ctypes.data
    begin = first - first % mmap.PAGESIZE
    # Advice alone: a kernel that refuses it changes nothing.
    libc.madvise(begin, first + mapped.nbytes - begin, mmap.MADV_RANDOM)
