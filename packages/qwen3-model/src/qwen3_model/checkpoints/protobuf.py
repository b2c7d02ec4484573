"""Protobuf's wire format, as much of it as strategy files need (source: its encoding guide).

Written here, since MindSpore publishes no schema of these files that the package protobuf could load, and
qwen3-data and qwen3-ckpt do without that package.
"""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WORD = 1 << 64


def varint(value: int) -> bytes:
    """Return a number in base 128; a negative one as 64-bit two's complement."""
    value %= WORD  # negative numbers travel as 64-bit two's complement
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def number(field: int, value: int) -> bytes:
    """Return a field that holds a number."""
    return varint(field << 3 | VARINT) + varint(value)


def message(field: int, body: bytes) -> bytes:
    """Return a field that holds bytes, a text or a message."""
    return varint(field << 3 | BYTES) + varint(len(body)) + body


def text(field: int, value: str) -> bytes:
    """Return a field that holds a text."""
    return message(field, value.encode())


def fields(body: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message in order: their number, and a number or bytes.

    Raises:
        ValueError: The message is damaged.
    """
    position = 0
    while position < len(body):
        key, position = read_varint(body, position)
        field, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = read_varint(body, position)
            yield field, value
            continue
        if kind == BYTES:
            length, position = read_varint(body, position)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} of field {field} is unknown")
        if position + length > len(body):
            raise ValueError(f"field {field} reaches beyond its end")
        yield field, body[position : position + length]
        position += length


def read_varint(body: bytes, position: int) -> tuple[int, int]:
    """Return the number at `position` and the position after it.

    Raises:
        ValueError: The number is cut short.
    """
    value, shift = 0, 0
    while True:
        if position >= len(body) or shift > 63:
            raise ValueError("a number is cut short")
        byte = body[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value % WORD, position


def as_bytes(value: int | bytes) -> bytes:
    """Return bytes as they are; raise ValueError for a number."""
    if isinstance(value, bytes):
        return value
    raise ValueError("a number stands where a message belongs")


def as_number(value: int | bytes) -> int:
    """Return a number as it is; raise ValueError for bytes."""
    if isinstance(value, int):
        return value
    raise ValueError("a message stands where a number belongs")


def signed(value: int) -> int:
    """Return what a 64-bit two's complement stands for."""
    return value - WORD if value >= WORD // 2 else value
