"""Many bytes into a file, from memory or out of other files, at the speed of the disk."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from qwen3_model.checkpoints.source_file import SourceFile
from qwen3_model.errors import FormatError

COPY_BYTES = 16 << 20
FLUSH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes of another file, to be copied without passing through this process where the system can."""

    file: SourceFile
    start: int
    size_bytes: int


Buffer = bytes | memoryview | np.ndarray | FileRange


class ByteWriter:
    """A new file; a context manager that closes it."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._flushed = 0

    def write(self, piece: Buffer) -> int:
        """Append a piece and return its bytes.

        Raises:
            FormatError: A file that is copied from has become shorter or was replaced.
        """
        if isinstance(piece, FileRange):
            written = _copy_range(self._file, piece)
        else:
            written = _write_all(self._file, _bytes_of(piece))
        self._start_flush()
        return written

    def _start_flush(self) -> None:
        """Let the disk begin with what came, so that a later fsync has little left to do."""
        position = self._file.tell()
        if position - self._flushed < FLUSH_BYTES:
            return
        # Linux starts to write dirty pages when they are declared unneeded, and keeps them.
        os.posix_fadvise(self._file.fileno(), self._flushed, position - self._flushed, os.POSIX_FADV_DONTNEED)
        self._flushed = position

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _write_all(file: BinaryIO, data: bytes | memoryview) -> int:
    rest = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while rest:
        rest = rest[file.write(rest) :]
    return memoryview(data).nbytes


def _copy_range(target: BinaryIO, piece: FileRange) -> int:
    copied = 0
    with piece.file.descriptor() as source:
        while copied < piece.size_bytes:
            left, position = min(piece.size_bytes - copied, COPY_BYTES), piece.start + copied
            try:
                count = os.copy_file_range(source, target.fileno(), left, position)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                # Not between these file systems, or not on this kernel.
                count = _write_all(target, piece.file.read(position, left).data)
            if count == 0:
                raise FormatError(f"{piece.file.path} has become shorter while it was read")
            copied += count
    return copied


def _bytes_of(piece: bytes | memoryview | np.ndarray) -> bytes | memoryview:
    if isinstance(piece, np.ndarray):
        return np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
    return piece
