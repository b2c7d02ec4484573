"""Inputs as blocks of whole raw records, in order, from any resume point on."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, cast

from qwen3_data.json_array import split_array
from qwen3_data.long_text import LONG_BYTES
from qwen3_data.sources import Source, describe_read_error, open_source

BLOCK_BYTES = 4 << 20
UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Position:
    """Where reading stands: everything before it is done."""

    source: int = 0
    """Index of the file."""
    offset: int = 0
    """Byte in the decompressed file (lines), or records read (the other kinds)."""
    record: int = 0
    """Records of the file before this place."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some whole records of one file."""

    source: Source
    first_record: int
    """Number of the first record in its file, from 1."""
    records: list[bytes]
    """Raw JSON, without line ends; of `.txt` the whole document, of parquet one JSON object per row."""
    after: Position
    read_bytes: int
    """Progress in bytes on disk; an estimate for compressed files."""
    cut: bool = False
    """The last record has no line end."""


def read_blocks(
    sources: list[Source], start: Position, *, keys: list[str] | None, end: tuple[int, int] | None = None
) -> Iterator[Block]:
    """Yield the records of `sources` from `start` on.

    Args:
        sources: The files.
        start: A file's beginning or a resume point (`Block.after`).
        keys: Columns to read of parquet files; None for all.
        end: Stop at this file and byte, which is the beginning of a line.
    """
    for index in range(start.source, len(sources)):
        source = sources[index]
        position = start if index == start.source else Position(source=index)
        stop = end[1] if end is not None and index == end[0] else None
        if (end is not None and index > end[0]) or stop == 0:
            return
        try:
            yield from _read_source(source, index, position, keys, stop)
        except Exception as error:
            sentence = describe_read_error(source, error)
            if sentence is None:
                raise
            raise sentence from error


def _read_source(
    source: Source, index: int, start: Position, keys: list[str] | None, stop: int | None
) -> Iterator[Block]:
    if source.kind == "parquet":
        # Imported here because pyarrow is an extra.
        from qwen3_data.parquet import parquet_blocks

        return parquet_blocks(source, index, start, keys)
    if source.kind == "text":
        return _text(source, index, start)
    if source.kind == "json" and _is_array(source):
        return _json_array(source, index, start)
    return _lines(source, index, start, stop)


def _lines(source: Source, index: int, start: Position, stop: int | None) -> Iterator[Block]:
    """Read whole lines from `start` up to the line that begins at byte `stop`."""
    offset, number = start.offset, start.record
    with open_source(source) as file:
        _skip_to(file, offset)
        held = bytearray()
        left = math.inf if stop is None else stop - offset
        while True:
            fresh = file.read(int(min(BLOCK_BYTES, left))) if left else b""
            left -= len(fresh)
            at = fresh.rfind(b"\n") + 1
            held += fresh[:at] if at else fresh
            if fresh and not at:
                continue
            if held:
                cut = not held.endswith(b"\n")
                if offset == 0 and held.startswith(UTF8_BOM):
                    offset += len(UTF8_BOM)
                    del held[: len(UTF8_BOM)]
                offset += len(held)
                records = _split_lines(held)
                after = Position(index, offset, number + len(records))
                yield Block(source, number + 1, records, after, 0 if source.compression else offset, cut=cut)
                number += len(records)
            held = bytearray(fresh[at:])
            if not fresh:
                return


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
            head += fresh
    return head.removeprefix(UTF8_BOM).lstrip().startswith(b"[")


def _json_array(source: Source, index: int, start: Position) -> Iterator[Block]:
    with open_source(source) as file:
        records: list[bytes] = []
        held_bytes, number = 0, 0
        for record in split_array(iter(lambda: file.read(BLOCK_BYTES), b""), str(source.path)):
            number += 1
            if number <= start.record:
                continue
            records.append(record)
            held_bytes += len(record)
            if held_bytes >= BLOCK_BYTES:
                yield Block(source, number - len(records) + 1, records, Position(index, number, number), 0)
                records, held_bytes = [], 0
        if records:
            yield Block(source, number - len(records) + 1, records, Position(index, number, number), 0)


def _text(source: Source, index: int, start: Position) -> Iterator[Block]:
    if start.record:
        return
    with open_source(source) as file:
        raw = file.read().removeprefix(UTF8_BOM)
    yield Block(source, 1, [raw], Position(index, 1, 1), source.size_bytes)


def _skip_to(file: IO[bytes], offset: int) -> None:
    if offset == 0:
        return
    if isinstance(file, io.FileIO):
        file.seek(offset)
        return
    while offset and (skipped := file.read(min(offset, BLOCK_BYTES))):
        offset -= len(skipped)
