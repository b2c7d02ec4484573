"""Files that are read in parts over a long time, and must stay the same meanwhile.

A file may be replaced, overwritten or cut short while a command reads it. Each `SourceFile` remembers which
file it was when it was first opened; whatever is read later is of that file, and `refuse_changed` tells at
the end whether all sources are still what they were.
"""

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_model.errors import FormatError

MAX_OPEN_FILES = 128
"""Descriptors that are kept; a checkpoint may have more files than a process may open."""
Identity = tuple[int, ...]


def identity_of(status: os.stat_result) -> Identity:
    """Return what changes when a file is replaced, overwritten or cut short."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class SourceFile:
    """A file as it was when it was first opened; its descriptor is closed with the object at the latest."""

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path, self.identity = path, identity

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor, which keeps the space of a deleted file taken; a later read opens it anew."""
        _DESCRIPTORS.forget(self)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return self.identity[2]

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Yield an open descriptor of this very file.

        Raises:
            FormatError: Another file has taken its name.
            OSError: It cannot be opened.
        """
        descriptor = _DESCRIPTORS.take(self)
        try:
            yield descriptor.number
        finally:
            _DESCRIPTORS.release(descriptor)

    def read(self, start: int, size_bytes: int) -> NDArray[np.uint8]:
        """Return `size_bytes` from `start`, a copy.

        Raises:
            FormatError: The file has become shorter, or cannot be read there.
        """
        target = np.empty(size_bytes, np.uint8)
        self.read_into(start, target)
        return target

    def read_into(self, start: int, target: NDArray[np.uint8]) -> None:
        """Fill `target`, of one dimension, with the bytes from `start` on.

        Raises:
            FormatError: The file has become shorter, or cannot be read there.
        """
        rest, position = target.data, start
        with self.descriptor() as number:
            while rest:
                try:
                    count = os.preadv(number, [rest], position)
                except OSError as error:
                    raise FormatError(
                        f"{self.path} cannot be read at byte {position}: {error.strerror}"
                    ) from None
                if count == 0:
                    raise FormatError(f"{self.path} has become shorter while it was read")
                rest, position = rest[count:], position + count


def open_source(path: Path) -> SourceFile:
    """Remember the file at `path`.

    Raises:
        FormatError: It is no regular file.
        OSError: It cannot be opened.
    """
    # A pipe would wait for a writer.
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode):
        os.close(number)
        what = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
        raise FormatError(f"{path} is a {what}, not a file; remove it or name another")
    file = SourceFile(path, identity_of(status))
    _DESCRIPTORS.keep(file, number)
    return file


def refuse_changed(files: Iterable[SourceFile]) -> None:
    """Compare every source with what it was when it was first opened.

    Raises:
        FormatError: One was replaced, overwritten, cut short or removed, so the result may be a mixture.
    """
    for file in files:
        try:
            is_same = identity_of(file.path.stat()) == file.identity
        except OSError:
            is_same = False
        if not is_same:
            raise FormatError(
                f"{file.path} was changed or replaced while it was read; nothing was written; run again when "
                "nothing else writes there"
            )


@dataclass(slots=True)
class _OpenDescriptor:
    number: int
    users: int = 0
    is_retired: bool = False


class _Descriptors:
    """The descriptors of the MAX_OPEN_FILES files that were read last, and of those that are being read."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a collected SourceFile may come here from within
        self._open: OrderedDict[int, _OpenDescriptor] = OrderedDict()

    def keep(self, file: SourceFile, number: int) -> None:
        """Keep an open descriptor of a file that has none."""
        with self._lock:
            self._open[id(file)] = _OpenDescriptor(number)
            self._shrink()

    def take(self, file: SourceFile) -> _OpenDescriptor:
        """Return the file's descriptor, to be given back; opens it anew where it was closed."""
        with self._lock:
            descriptor = self._open.get(id(file)) or _OpenDescriptor(_reopen(file))
            descriptor.users += 1
            self._open[id(file)] = descriptor
            self._open.move_to_end(id(file))
            self._shrink()
            return descriptor

    def release(self, descriptor: _OpenDescriptor) -> None:
        """Let a descriptor be closed when nobody else uses it."""
        with self._lock:
            descriptor.users -= 1
            if descriptor.is_retired and not descriptor.users:
                os.close(descriptor.number)

    def forget(self, file: SourceFile) -> None:
        """Close the file's descriptor."""
        with self._lock:
            if descriptor := self._open.pop(id(file), None):
                _retire(descriptor)

    def _shrink(self) -> None:
        while len(self._open) > MAX_OPEN_FILES:
            _retire(self._open.popitem(last=False)[1])


def _retire(descriptor: _OpenDescriptor) -> None:
    descriptor.is_retired = True
    if not descriptor.users:
        os.close(descriptor.number)


def _reopen(file: SourceFile) -> int:
    try:
        number = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{file.path} was removed while it was read") from None
    if identity_of(os.fstat(number)) != file.identity:
        os.close(number)
        raise FormatError(f"{file.path} was changed or replaced while it was read")
    return number


_DESCRIPTORS = _Descriptors()
