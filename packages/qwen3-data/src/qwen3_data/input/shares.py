"""Which part of the inputs one of several machines takes: equal ranges of bytes, cut at line ends."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from qwen3_data.input.block import Position
from qwen3_data.input.sources import Source
from qwen3_model.errors import ConfigError

SEARCH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the inputs."""

    index: int
    num_shares: int
    start: Position
    end: tuple[int, int] | None
    """File and byte where the next share begins; None for the end of the last file."""
    begins: tuple[int, ...]
    """Bytes of all files before each, and of all files."""

    @property
    def size_bytes(self) -> int:
        """Bytes of input in this share."""
        return self.read_before(*(self.end or (len(self.begins) - 1, 0)))

    def read_before(self, source: int, read_bytes: int) -> int:
        """Return how many bytes of the share lie before byte `read_bytes` of file `source`."""
        return self.begins[source] + read_bytes - self.begins[self.start.source] - self.start.offset

    def name_of(self, prefix: Path) -> Path:
        """Return the output prefix of this share."""
        if self.num_shares == 1:
            return prefix
        return prefix.with_name(f"{prefix.name}_{self.index:05d}-of-{self.num_shares:05d}")


def find_share(sources: list[Source], index: int, num_shares: int) -> Share:
    """Return share `index` of `num_shares`.

    A line belongs to the share in which it begins. A file that cannot be cut (compressed, parquet, JSON
    array, text) belongs whole to the share in which it begins.

    Raises:
        ConfigError: There is no such share, or stdin is to be shared.
    """
    begins = tuple(accumulate((source.size_bytes for source in sources), initial=0))
    if not 0 <= index < num_shares:
        raise ConfigError(
            f"--shard-index {index} is not one of 0 to {num_shares - 1} (--num-shards {num_shares})"
        )
    if num_shares == 1:
        return Share(0, 1, Position(), None, begins)
    if any(source.is_stdin for source in sources):
        raise ConfigError("stdin cannot be shared among --num-shards; give files")
    total = begins[-1]
    start = _border(sources, total * index // num_shares)
    end = None if index == num_shares - 1 else _border(sources, total * (index + 1) // num_shares)
    return Share(index, num_shares, Position(*start), end, begins)


def _border(sources: list[Source], at: int) -> tuple[int, int]:
    """Return file and byte of the first record that begins at byte `at` of all inputs or later."""
    for number, source in enumerate(sources):
        if at < source.size_bytes:
            if at == 0:
                return number, 0
            if not source.is_divisible:
                return number + 1, 0
            offset = _line_start(source.path, at)
            return (number, offset) if offset < source.size_bytes else (number + 1, 0)
        at -= source.size_bytes
    return len(sources), 0


@lru_cache(maxsize=1)
def count_lines(path: Path, end: int) -> int:
    """Return how many lines of a file end before byte `end`."""
    count = 0
    with path.open("rb") as file:
        while end and (chunk := file.read(min(end, SEARCH_BYTES))):
            count += chunk.count(b"\n")
            end -= len(chunk)
    return count


def _line_start(path: Path, at: int) -> int:
    with path.open("rb") as file:
        # The byte before tells whether a line begins right here.
        file.seek(at - 1)
        offset = at - 1
        while chunk := file.read(SEARCH_BYTES):
            found = chunk.find(b"\n")
            if found >= 0:
                return offset + found + 1
            offset += len(chunk)
        return offset
