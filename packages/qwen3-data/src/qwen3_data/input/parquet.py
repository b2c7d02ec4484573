"""Parquet files as JSON records, some rows at a time, however large the row groups are."""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import orjson

from qwen3_data.input.block import Block, Position, too_long
from qwen3_data.input.sources import Source
from qwen3_model.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ColumnChunkMetaData, FileMetaData

MAX_ROWS = 1024
BATCH_BYTES = 4 << 20
"""Bytes of text in a batch, estimated from the figures of the file."""
MOST_BYTES = 256 << 20
"""Bytes of a batch whose rows repeat the longest value of a dictionary."""
BUFFER_BYTES = 1 << 20
"""Read at once of a column; without a buffer, pyarrow reads a row group's column whole."""


def parquet_blocks(
    source: Source, index: int, start: Position, keys: list[str] | None, longest: int
) -> Iterator[Block]:
    """Yield the rows after `start`, only the columns `keys`, none of more than `longest` bytes as JSON.

    Raises:
        ConfigError: pyarrow is not installed.
        FormatError: The file is damaged, has no such column or a longer row.
    """
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"{source.path} needs pyarrow ({error}): pip install 'qwen3-data[parquet]'"
        ) from error
    try:
        file = parquet.ParquetFile(source.path, buffer_size=BUFFER_BYTES)
    except pyarrow.ArrowException as error:
        raise FormatError(f"{source.path} is no parquet file: {error}") from error
    with file:
        names = file.schema_arrow.names
        missing = [key for key in keys or () if key not in names and key.partition(".")[0] not in names]
        if missing:
            raise FormatError(
                f"{source.path} has no column {missing}; its columns are {names}; pass --json-keys"
            )
        number, read_bytes = 0, 0
        for batch in file.iter_batches(batch_size=_batch_rows(file.metadata, keys), columns=keys):
            rows = batch.num_rows
            read_bytes = min(source.size_bytes, read_bytes + batch.nbytes)
            if number + rows > start.record:
                fresh = batch.slice(max(0, start.record - number))
                records = list(_records(fresh))
                first = number + rows - len(records) + 1
                for at, record in enumerate(records, first):
                    if len(record) > longest:
                        raise too_long(source, at, longest)
                after = Position(index, number + rows, number + rows)
                yield Block(source, first, records, after, read_bytes)
            number += rows
            pyarrow.default_memory_pool().release_unused()


def _records(rows: "RecordBatch") -> Iterator[bytes]:
    """Yield each row as JSON; for a row that is no Unicode its bytes, for the parser to refuse."""
    try:
        values = rows.to_pylist()
    except UnicodeDecodeError:
        # One bad text fails the whole batch, so each row is tried alone.
        for number in range(rows.num_rows):
            try:
                (value,) = rows.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                yield bytes(error.object)
            else:
                yield _json(value)
        return
    yield from map(_json, values)


def _json(row: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(row, default=_plain)
    except orjson.JSONEncodeError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            return bytes(error.__cause__.object)
        raise


def _plain(value: object) -> str:
    """Return text for what JSON has no type for: some writers store texts as plain bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _batch_rows(metadata: "FileMetaData", keys: list[str] | None) -> int:
    """Return how many rows hold about BATCH_BYTES where they are longest, by the file's metadata.

    A value of a column's dictionary may stand in every row, however few bytes the rows have in the file.
    """
    row_bytes, value_bytes = 0.0, 0.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        used = [one for one in columns if keys is None or one.path_in_schema in keys]
        row_bytes = max(row_bytes, sum(one.total_uncompressed_size for one in used) / max(1, group.num_rows))
        value_bytes = max(value_bytes, *map(_dictionary_bytes, used), 0.0)
    return max(1, min(MAX_ROWS, int(BATCH_BYTES / max(1, row_bytes)), int(MOST_BYTES / max(1, value_bytes))))


def _dictionary_bytes(column: "ColumnChunkMetaData") -> float:
    """Return about how many bytes a column's dictionary has, and so its longest value at most."""
    if not column.has_dictionary_page or column.dictionary_page_offset is None:
        return 0.0
    stored = max(0, column.data_page_offset - column.dictionary_page_offset)
    return stored * max(1.0, column.total_uncompressed_size / max(1, column.total_compressed_size))
