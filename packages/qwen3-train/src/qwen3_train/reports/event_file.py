"""TensorBoard's event files, written without TensorBoard: scalars in TFRecords of hand-made protobuf.

A record is its length (uint64), a checksum of that, the data, a checksum of these. The data are an `Event`:
1 wall time (double), 2 step (int64), 3 file version (string), 5 summary, 7 session log. A summary holds
values (1) of tag (1) and simple value (2, float). The checksum is CRC-32C (RFC 3720, appendix B.4), rotated
and shifted as TFRecord wants it.
"""

import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from qwen3_model.protobuf import message, number

POLYNOMIAL = 0x82F63B78
MASK_DELTA = 0xA282EAD8
SESSION_START = b"\x08\x01"
"""A session log of status 1: TensorBoard then forgets what other files say of this step and later ones."""


class EventFile:
    """Append scalars to a new file of `directory`."""

    def __init__(self, directory: Path, *, after_step: int) -> None:
        """Open the file; `after_step` is the last step that older files may speak of, 0 for a new run."""
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = (directory / name).open("wb")
        self._append(message(3, b"brain.Event:2"))
        if after_step:
            self._append(number(2, after_step + 1) + message(7, SESSION_START))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the values of a step, at once."""
        values = b"".join(
            message(1, message(1, tag.encode()) + b"\x15" + _float32(value)) for tag, value in scalars.items()
        )
        self._append(number(2, step) + message(5, values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, fields: bytes) -> None:
        data = b"\x09" + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(data))
        self._file.write(length + _checksum(length) + data + _checksum(data))
        self._file.flush()


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def crc32c(data: bytes) -> int:
    """Return the Castagnoli checksum."""
    value = 0xFFFFFFFF
    for byte in data:
        value = TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()


def _checksum(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + MASK_DELTA) & 0xFFFFFFFF)
