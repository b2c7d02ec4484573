"""Parquet files as JSON records, a row group's slice at a time."""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import orjson

from qwen3_model.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from qwen3_data.blocks import Block, Position
    from qwen3_data.sources import Source

ROWS = 1024


def parquet_blocks(
    source: "Source", index: int, start: "Position", keys: list[str] | None
) -> Iterator["Block"]:
    """Yield the rows after `start`, only the columns `keys`.

    Raises:
        ConfigError: pyarrow is not installed.
        FormatError: The file is damaged or has no such column.
    """
    from qwen3_data.blocks import Block, Position

    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"{source.path} needs pyarrow ({error}): pip install 'qwen3-data[parquet]'"
        ) from error
    try:
        file = parquet.ParquetFile(source.path)
    except pyarrow.ArrowException as error:
        raise FormatError(f"{source.path} is no parquet file: {error}") from error
    with file:
        names = file.schema_arrow.names
        missing = [key for key in keys or () if key not in names]
        if missing:
            raise FormatError(
                f"{source.path} has no column {missing}; its columns are {names}; pass --json-keys"
            )
        number, read_bytes = 0, 0
        for batch in file.iter_batches(batch_size=ROWS, columns=keys):
            rows = batch.num_rows
            read_bytes = min(source.size_bytes, read_bytes + batch.nbytes)
            if number + rows > start.record:
                fresh = batch.slice(max(0, start.record - number))
                records = [orjson.dumps(row) for row in fresh.to_pylist()]
                after = Position(index, number + rows, number + rows)
                yield Block(source, number + rows - len(records) + 1, records, after, read_bytes)
            number += rows
