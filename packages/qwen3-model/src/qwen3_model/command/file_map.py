"""Files mapped into memory without keeping them open, so that thousands of them need no file descriptors."""

import ctypes
import errno
import mmap
import os
import weakref
from functools import cache
from pathlib import Path

import numpy as np

MAP_FAILED = ctypes.c_void_p(-1).value


def map_file(path: Path, size_bytes: int) -> np.ndarray:
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
    libc = _libc()
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


def read_mapped(mapped: np.ndarray) -> np.ndarray:
    """Return a copy of a contiguous part of a mapped file, without the signal that a missing page raises.

    The kernel copies (process_vm_readv of this process itself), so a page that the file no longer has is an
    error of the call and not SIGBUS. Where a sandbox forbids that call, the part is copied as any array.

    Raises:
        EOFError: The file was cut, and the part reaches beyond what is left.
    """
    copy = np.empty(mapped.shape, mapped.dtype)
    if copy.nbytes == 0:
        return copy
    local = _Vector(copy.ctypes.data, copy.nbytes)
    remote = _Vector(mapped.ctypes.data, mapped.nbytes)
    done = _libc().process_vm_readv(os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if done == copy.nbytes:
        return copy
    if done < 0 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
        copy[...] = mapped
        return copy
    raise EOFError


def advise_random(mapped: np.ndarray) -> None:
    """Tell the system that a mapped array is read here and there, so that it reads no pages ahead."""
    if mapped.nbytes == 0:
        return
    first = mapped.ctypes.data
    begin = first - first % mmap.PAGESIZE
    # Advice alone: a kernel that refuses it changes nothing.
    _libc().madvise(begin, first + mapped.nbytes - begin, mmap.MADV_RANDOM)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    vector = ctypes.POINTER(_Vector)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    libc.process_vm_readv.argtypes = (
        ctypes.c_int, vector, ctypes.c_ulong, vector, ctypes.c_ulong, ctypes.c_ulong,
    )  # fmt: skip
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
