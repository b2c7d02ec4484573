"""A `.zst` file as a stream that knows when it was cut.

Written here around the package zstandard, whose own stream ends quietly where a frame is cut, so that what
was behind it would be lost.
"""

import io
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from qwen3_model.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer
    from zstandard import ZstdDecompressionObj, ZstdDecompressor

PACKED_BYTES = 4 << 10
"""Decompressed in one call; four bytes can stand for 128 KB, so this bounds memory for every input."""
MAX_WINDOW = 1 << 31
"""`zstd --long=31` makes windows of this size, which the library refuses by default."""


def open_zstd(path: Path) -> IO[bytes]:
    """Open the decompressed bytes of a file of one or several frames.

    Raises:
        ConfigError: The package zstandard is missing.
    """
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(
            f"{path} needs the package zstandard: pip install 'qwen3-data[zstd]', or decompress it first"
        ) from error
    frames = _Frames(path, zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW))
    return cast(IO[bytes], io.BufferedReader(frames, buffer_size=1 << 20))


class _Frames(io.RawIOBase):
    def __init__(self, path: Path, decompressor: "ZstdDecompressor") -> None:
        self._file = path.open("rb", buffering=1 << 20)
        self._decompressor = decompressor
        self._frame: ZstdDecompressionObj | None = None
        """The frame that is being read; None between frames."""
        self._packed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: "Buffer") -> int:
        """Fill `target` as far as one piece of the file goes; return 0 at the end.

        Raises:
            EOFError: The file ends inside a frame.
        """
        while not self._plain:
            self._packed = self._packed or self._file.read(PACKED_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame")
                return 0
            self._decompress()
        filled = memoryview(target)
        size = min(len(filled), len(self._plain))
        filled[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        return size

    def _decompress(self) -> None:
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        self._plain = memoryview(self._frame.decompress(self._packed))
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None

    def close(self) -> None:
        self._file.close()
        super().close()
