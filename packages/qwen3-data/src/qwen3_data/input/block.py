"""Raw records of one file that are read together, and up to where the inputs have been read."""

from dataclasses import dataclass

from qwen3_data.input.sources import Source
from qwen3_model.errors import FormatError


@dataclass(frozen=True, slots=True)
class Position:
    """The end of what has been read of the inputs."""

    source: int = 0
    """Index of the file."""
    offset: int = 0
    """Byte in the decompressed file (lines), or records read (the other kinds)."""
    record: int = 0
    """Records of the file before this position."""


@dataclass(frozen=True, slots=True)
class Block:
    """Some whole records of one file."""

    source: Source
    first_record: int
    """Number of the first record in its file, from 1."""
    records: list[bytes]
    """Raw JSON without line ends; for `.txt` the whole document, for parquet one JSON object per row."""
    after: Position
    read_bytes: int
    """Progress in bytes on disk; an estimate for compressed files."""
    cut: bool = False
    """The last record has no line end."""


def too_long(source: Source, number: int, longest: int) -> FormatError:
    """Return the error of a record that has more bytes than are allowed."""
    unit = "line" if source.kind == "lines" else "record"
    return FormatError(
        f"{source.path}, {unit} {number} has more than {longest} bytes; raise --max-record-bytes where "
        "memory for several times as much is free, or cut the record"
    )
