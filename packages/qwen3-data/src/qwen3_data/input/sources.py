"""The input files of a run: what they are, in which order, and how to open them."""

import bz2
import gzip
import lzma
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from qwen3_data.input.zstd_stream import open_zstd
from qwen3_model.errors import ConfigError, FormatError, Qwen3Error

Kind = Literal["lines", "json", "parquet", "text"]

KIND_OF_ENDING: dict[str, Kind] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
STDIN = "-"


@dataclass(frozen=True, slots=True)
class Source:
    """One input file."""

    path: Path
    kind: Kind
    compression: str
    """Ending of a compressed file, or "" for none."""
    size_bytes: int
    """Bytes on disk; 0 for stdin."""
    changed_ns: int = 0
    """Time of the last change."""

    @property
    def name(self) -> str:
        """The path as text that any file can hold; bytes that are no UTF-8 come as escapes."""
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")

    @property
    def is_stdin(self) -> bool:
        """Whether the records come from standard input."""
        return str(self.path) == STDIN

    @property
    def is_divisible(self) -> bool:
        """Whether reading may begin at any line."""
        return self.kind == "lines" and not self.compression and not self.is_stdin


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Return the files that `inputs` (files, folders, glob patterns, `-`) name, each once, in a fixed order.

    Inputs keep the order of the command line; the files of a folder or pattern are sorted by name.

    Raises:
        ConfigError: An input names nothing, or stdin beside others.
        FormatError: A file's ending is not known.
    """
    if STDIN in inputs:
        if len(inputs) > 1:
            raise ConfigError("stdin (-) can only be the single input; give files, or pipe them all")
        return [Source(Path(STDIN), "lines", "", 0)]
    found: dict[Path, Source] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            files = sorted(_files_below(path))
            if not files:
                raise ConfigError(f"the folder {path} holds no file with a known ending ({_known_endings()})")
        elif path.is_file():
            files = [path]
        else:
            files = _match(path)
            if not files:
                raise ConfigError(f"--input {entry} does not exist and matches no file; check the path")
        for file in files:
            found.setdefault(file.resolve(), _make_source(file))
    return list(found.values())


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the visible files of known endings in a folder and, also by links, the folders in it.

    Manifests of token files are passed over, since outputs may lie among their inputs.
    """
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = Path(parent, name)
            is_manifest = file.suffix == ".json" and file.with_suffix(".idx").exists()
            if not name.startswith(".") and _kind(file) is not None and file.is_file() and not is_manifest:
                yield file


def _match(pattern: Path) -> list[Path]:
    root = Path(pattern.anchor)
    try:
        return sorted(path for path in root.glob(str(pattern.relative_to(root))) if path.is_file())
    except ValueError:  # no pattern
        return []


def _make_source(path: Path) -> Source:
    kind = _kind(path)
    if kind is None:
        raise FormatError(
            f"{path} has no known ending; rename it to one of {_known_endings()}, or pipe it into --input -"
        )
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
    if kind == "parquet" and compression:
        raise FormatError(f"{path} is a compressed parquet file; decompress it first")
    return Source(path, kind, compression, path.stat().st_size, path.stat().st_mtime_ns)


def _kind(path: Path) -> Kind | None:
    bare = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return KIND_OF_ENDING.get(bare.suffix.lower())


def _known_endings() -> str:
    return ", ".join(KIND_OF_ENDING) + "; also with " + ", ".join(COMPRESSIONS)


def open_source(source: Source) -> IO[bytes]:
    """Open the decompressed bytes of a source.

    Raises:
        ConfigError: `.zst` without the package zstandard.
    """
    if source.is_stdin:
        return sys.stdin.buffer
    if source.compression == ".zst":
        return open_zstd(source.path)
    if not source.compression:
        return source.path.open("rb", buffering=0)
    openers: dict[str, type] = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
    return cast(IO[bytes], openers[source.compression](source.path))


def refuse_changed(sources: Sequence[Source]) -> None:
    """Raise ConfigError where a file is not as it was found; part of it may have been read before."""
    for source in sources:
        if source.is_stdin:
            continue
        try:
            found = source.path.stat()
        except FileNotFoundError:
            found = None
        if found is None or (found.st_size, found.st_mtime_ns) != (source.size_bytes, source.changed_ns):
            raise ConfigError(
                f"{source.path} changed while it was read; wait until nobody writes to it, then begin anew "
                "with --force"
            )


def describe_read_error(source: Source, error: Exception) -> Qwen3Error | None:
    """Return a sentence for what a decompressor raises about damaged data, None for other errors."""
    kind = type(error)
    is_decoders = kind.__name__ in ("ZstdError", "error") or kind.__module__.startswith("pyarrow.")
    if isinstance(error, EOFError | lzma.LZMAError | gzip.BadGzipFile) or is_decoders:
        return FormatError(f"{source.path} is damaged or cut ({error}); fetch it again")
    if isinstance(error, OSError) and error.errno is None:  # of bz2 and pyarrow, not of the system
        form = source.compression or f".{source.kind}"
        return FormatError(f"{source.path} is no {form} file or is damaged ({error}); check its ending")
    return None


def input_size(sources: Sequence[Source]) -> int | None:
    """Return the bytes of all sources, None where they are not known before reading."""
    if any(source.is_stdin or source.compression for source in sources):
        return None
    return sum(source.size_bytes for source in sources)
