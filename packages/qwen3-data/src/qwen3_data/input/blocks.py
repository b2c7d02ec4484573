"""Inputs as blocks of whole raw records, in order, from any resume point on."""

import io
import math
from collections.abc import Iterator
from typing import IO, cast

from qwen3_data.input.block import Block, Position, too_long
from qwen3_data.input.json_array import split_array
from qwen3_data.input.long_text import LONG_BYTES
from qwen3_data.input.parquet import parquet_blocks
from qwen3_data.input.sources import Source, describe_read_error, open_source

BLOCK_BYTES = 4 << 20
MAX_RECORD_BYTES = 1 << 30
"""A few thousand compressed bytes can hold a line of gigabytes, which would take all memory."""
UTF8_BOM = b"\xef\xbb\xbf"


def read_blocks(
    sources: list[Source],
    start: Position,
    *,
    keys: list[str] | None,
    end: tuple[int, int] | None = None,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> Iterator[Block]:
    """Yield the records of `sources` from `start` on.

    Args:
        sources: The files.
        start: A file's beginning or a resume point (`Block.after`).
        keys: Columns to read of parquet files; None for all.
        end: Stop at this file and byte, which is the beginning of a line.
        max_record_bytes: A record of more bytes is refused before it is in memory; a row of parquet, which
            pyarrow decompresses, after.

    Raises:
        FormatError: A file is damaged, or has a longer record.
    """
    for index in range(start.source, len(sources)):
        source = sources[index]
        position = start if index == start.source else Position(source=index)
        stop = end[1] if end is not None and index == end[0] else None
        if (end is not None and index > end[0]) or stop == 0:
            return
        try:
            yield from _read_source(source, index, position, keys, stop, max_record_bytes)
        except Exception as error:
            sentence = describe_read_error(source, error)
            if sentence is None:
                raise
            raise sentence from error


def _read_source(
    source: Source,
    index: int,
    start: Position,
    keys: list[str] | None,
    stop: int | None,
    longest: int,
) -> Iterator[Block]:
    if source.kind == "parquet":
        return parquet_blocks(source, index, start, keys, longest)
    if source.kind == "text":
        return _text(source, index, start, longest)
    if source.kind == "json" and _is_array(source):
        return _json_array(source, index, start, longest)
    return _lines(source, index, start, stop, longest)


def _lines(source: Source, index: int, start: Position, stop: int | None, longest: int) -> Iterator[Block]:
    """Read whole lines from `start` up to the line that begins at byte `stop`."""
    offset, number = start.offset, start.record
    with open_source(source) as file:
        _skip_to(file, offset)
        buffer = bytearray()
        left = math.inf if stop is None else stop - offset
        while True:
            fresh = file.read(int(min(BLOCK_BYTES, left))) if left else b""
            left -= len(fresh)
            at = fresh.rfind(b"\n") + 1
            buffer += fresh[:at] if at else fresh
            if fresh and not at:
                if len(buffer) > longest:
                    raise too_long(source, number + 1, longest)
                continue
            if buffer:
                cut = not buffer.endswith(b"\n")
                if offset == 0 and buffer.startswith(UTF8_BOM):
                    offset += len(UTF8_BOM)
                    del buffer[: len(UTF8_BOM)]
                offset += len(buffer)
                records = _split_lines(buffer)
                if len(buffer) > longest:
                    _refuse_longer(source, records, number + 1, longest)
                after = Position(index, offset, number + len(records))
                yield Block(source, number + 1, records, after, 0 if source.compression else offset, cut=cut)
                number += len(records)
            buffer = bytearray(fresh[at:])
            if not fresh:
                return


def _refuse_longer(source: Source, records: list[bytes], first: int, longest: int) -> None:
    for number, record in enumerate(records, first):
        if len(record) > longest:
            raise too_long(source, number, longest)


def _split_lines(raw: bytearray) -> list[bytes]:
    """Return the lines of `raw`; a long one as it is, because a copy would double its memory."""
    if len(raw) >= LONG_BYTES and raw.find(b"\n") in (-1, len(raw) - 1):
        return [cast(bytes, raw)]
    lines = bytes(raw).split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _is_array(source: Source) -> bool:
    head = b""
    with open_source(source) as file:
        while not head.removeprefix(UTF8_BOM).strip() and (fresh := file.read(4096)):
            head = fresh if not head.removeprefix(UTF8_BOM) else head[-1:] + fresh
    return head.removeprefix(UTF8_BOM).lstrip().startswith(b"[")


def _json_array(source: Source, index: int, start: Position, longest: int) -> Iterator[Block]:
    with open_source(source) as file:
        records: list[bytes] = []
        held_bytes, number = 0, 0
        chunks = iter(lambda: file.read(BLOCK_BYTES), b"")
        for record in split_array(chunks, str(source.path), longest):
            number += 1
            _refuse_longer(source, [record], number, longest)
            if number <= start.record:
                continue
            records.append(record)
            held_bytes += len(record)
            if held_bytes >= BLOCK_BYTES:
                yield Block(source, number - len(records) + 1, records, Position(index, number, number), 0)
                records, held_bytes = [], 0
        if records:
            yield Block(source, number - len(records) + 1, records, Position(index, number, number), 0)


def _text(source: Source, index: int, start: Position, longest: int) -> Iterator[Block]:
    if start.record:
        return
    with open_source(source) as file:
        raw = _read_all(file, longest)
    if raw is None:
        raise too_long(source, 1, longest)
    raw = raw.removeprefix(UTF8_BOM)
    yield Block(source, 1, [raw], Position(index, 1, 1), source.size_bytes)


def _read_all(file: IO[bytes], longest: int) -> bytes | None:
    """Return all of a file, None where it holds more than `longest` bytes."""
    parts, size = [], 0
    while part := file.read(BLOCK_BYTES):
        parts.append(part)
        size += len(part)
        if size > longest:
            return None
    return b"".join(parts)


def _skip_to(file: IO[bytes], offset: int) -> None:
    if offset == 0:
        return
    if isinstance(file, io.FileIO):
        file.seek(offset)
        return
    while offset and (skipped := file.read(min(offset, BLOCK_BYTES))):
        offset -= len(skipped)
