"""Token files: Megatron's `.bin`/`.idx` version 1, memory mapped, and the manifest that says what made them.

docs/formats/tokens.md describes both byte for byte.
"""

import dataclasses
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_model.command.file_map import map_file, read_mapped
from qwen3_model.command.json_file import read_json
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError, FormatError

MAGIC = b"MMIDIDX\x00\x00"
IDX_VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, dtype code, number of sequences, number of document indices."""

DTYPE_OF_CODE: dict[int, np.dtype[np.integer]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
CODE_OF_DTYPE = {dtype: code for code, dtype in DTYPE_OF_CODE.items()}

MANIFEST_VERSION = 2
"""Version 1 lacks `settings` and `part`."""
MOST = 2**63 - 1
COUNT_OR_NONE, OBJECT_OR_NONE = (int, type(None)), (dict, type(None))
MANIFEST_TYPES: Mapping[str, tuple[type, ...]] = {
    "tokenizer_name": (str,), "tokenizer_sha256": (str,), "eod_appended": (bool,), "sources": (list,),
    "num_skipped_records": COUNT_OR_NONE, "num_special_texts": COUNT_OR_NONE,
    "settings": OBJECT_OR_NONE, "part": OBJECT_OR_NONE,
}  # fmt: skip
"""JSON types of a manifest's fields; the others are int."""
MAKE_AGAIN = "end what writes to it, make it again and start the run again"
CHECK_BLOCK = 1 << 20
"""Sequences whose pointers are checked at once; bounds the memory of opening a large index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What made a token file; stands beside it as `<prefix>.json`."""

    version: int
    """Version of the manifest's own format."""
    tokenizer_name: str
    """Name of the tokenizer's folder, for people."""
    tokenizer_sha256: str
    """SHA-256 of tokenizer.json, in hexadecimal."""
    vocab_size: int
    """Entries of the tokenizer, added tokens included."""
    eod_id: int
    """End-of-document id."""
    eod_appended: bool
    """Whether each document that holds text ends with `eod_id`."""
    num_documents: int
    """Records of the input that were kept, empty ones included."""
    num_sequences: int
    """Documents that hold at least one token, or their sentences."""
    num_tokens: int
    """End-of-document tokens included."""
    sources: tuple[str, ...]
    """Names of the input files, in order."""
    num_skipped_records: int | None = 0
    """Bad records left out under `--on-error skip`; None where only those of a whole are known."""
    num_special_texts: int | None = 0
    """Documents whose text spells a special token; None where only those of a whole are known."""
    settings: Mapping[str, object] | None = None
    """What the run was asked to do, as `qwen3-data preprocess --resume` compares it; None where not known."""
    part: Mapping[str, object] | None = None
    """Set in a file that `split` made: its `index`, `of` how many, and what the `whole` manifest said."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """An open pair of `.bin` and `.idx`; the arrays are read-only maps of the files."""

    prefix: Path
    """Path of the pair without `.bin` and `.idx`."""
    dtype: np.dtype[np.integer]
    """Type of one token in the file."""
    sequence_lengths: NDArray[np.int32]
    """Tokens of each sequence."""
    pointers: NDArray[np.int64]
    """Byte offset of each sequence in `.bin`."""
    document_indices: NDArray[np.int64]
    """First sequence of each document, then the number of sequences."""
    ids: NDArray[np.integer]
    """All tokens of `.bin`."""

    @property
    def num_tokens(self) -> int:
        """Tokens in `.bin`."""
        return len(self.ids)

    @property
    def num_documents(self) -> int:
        """Documents, those without a sequence included."""
        return len(self.document_indices) - 1

    def sequence(self, index: int, offset: int = 0, length: int | None = None) -> NDArray[np.integer]:
        """Return `length` tokens of a sequence from `offset` on (to its end by default), without a copy."""
        begin = int(self.pointers[index]) // self.dtype.itemsize
        num_tokens = int(self.sequence_lengths[index])
        stop = num_tokens if length is None else offset + length
        if not 0 <= offset <= stop <= num_tokens:
            raise IndexError(f"tokens {offset} to {stop} of sequence {index}, which has {num_tokens}")
        return self.ids[begin + offset : begin + stop]

    def read(self, index: int, offset: int = 0, length: int | None = None) -> NDArray[np.integer]:
        """Return a copy of what `sequence` returns, also where the files are cut at this moment.

        Raises:
            FormatError: The tokens asked for are gone.
        """
        try:
            entry = slice(index, index + 1)
            begin = int(read_mapped(self.pointers[entry])[0]) // self.dtype.itemsize
            num_tokens = int(read_mapped(self.sequence_lengths[entry])[0])
            stop = num_tokens if length is None else offset + length
            if not 0 <= offset <= stop <= num_tokens:
                self.require_whole()
                raise IndexError(f"tokens {offset} to {stop} of sequence {index}, which has {num_tokens}")
            return read_mapped(self.ids[begin + offset : begin + stop])
        except EOFError:
            self.require_whole()
            raise FormatError(
                f"{sibling(self.prefix, '.bin')} or .idx was cut while the run was reading it; {MAKE_AGAIN}"
            ) from None

    def require_whole(self) -> None:
        """Raise FormatError when a file has become shorter than it was when it was opened.

        What is left of the last page reads as zeros, so a reader asks this after it has read. A file that was
        removed or replaced is still mapped as it was.
        """
        held_bytes = {
            ".bin": self.num_tokens * self.dtype.itemsize,
            ".idx": HEADER.size + 12 * len(self.sequence_lengths) + 8 * len(self.document_indices),
        }
        for ending, size_bytes in held_bytes.items():
            path = sibling(self.prefix, ending)
            try:
                left_bytes = path.stat().st_size
            except FileNotFoundError:
                continue
            if left_bytes < size_bytes:
                raise FormatError(
                    f"{path} was cut to {left_bytes} bytes while the run was reading it, from {size_bytes}; "
                    f"{MAKE_AGAIN}"
                )


def open_tokens(prefix: Path, *, checks: bool = True) -> TokenFile:
    """Map the token file `<prefix>.bin` and `<prefix>.idx`.

    Args:
        prefix: Path without `.bin` or `.idx`.
        checks: Whether to look at every sequence of the index; else `check_index` may do it later.

    Raises:
        FormatError: A file is missing, is no token file, or the two do not belong together.
    """
    idx_path, bin_path = sibling(prefix, ".idx"), sibling(prefix, ".bin")
    for path in (idx_path, bin_path):
        if not path.is_file():
            raise FormatError(f"{path} is missing; give the path of the token files without .bin or .idx")
    dtype, num_sequences, num_indices = read_idx_header(idx_path)
    lengths_at = HEADER.size
    pointers_at = lengths_at + 4 * num_sequences
    indices_at = pointers_at + 8 * num_sequences
    end = indices_at + 8 * num_indices
    idx_bytes = idx_path.stat().st_size
    # A multimodal index has one mode byte per sequence behind the rest.
    if idx_bytes not in (end, end + num_sequences):
        raise FormatError(
            f"{idx_path} has {counted(idx_bytes, 'byte')}, but its header promises {end} "
            f"({counted(num_sequences, 'sequence')}, "
            f"{counted(num_indices - 1, 'document')}); it was cut or damaged, so make it again"
        )
    bin_bytes = bin_path.stat().st_size
    if bin_bytes % dtype.itemsize:
        raise FormatError(f"{bin_path} has {bin_bytes} bytes, which is no whole number of {dtype} tokens")
    index = map_file(idx_path, end)
    tokens = TokenFile(
        prefix=prefix,
        dtype=dtype,
        sequence_lengths=np.frombuffer(index, "<i4", num_sequences, lengths_at),
        pointers=np.frombuffer(index, "<i8", num_sequences, pointers_at),
        document_indices=np.frombuffer(index, "<i8", num_indices, indices_at),
        ids=map_file(bin_path, bin_bytes).view(dtype),
    )
    if checks:
        check_index(tokens)
    return tokens


def read_idx_header(path: Path) -> tuple[np.dtype[np.integer], int, int]:
    """Return token dtype, number of sequences and number of document indices of an index.

    Raises:
        FormatError: `path` is no index, or of a version or dtype that is not known.
    """
    with path.open("rb") as file:
        raw = file.read(HEADER.size)
    if len(raw) < HEADER.size or not raw.startswith(MAGIC):
        raise FormatError(f"{path} is no token index (it does not begin with MMIDIDX)")
    version, code, num_sequences, num_indices = (int(value) for value in HEADER.unpack(raw)[1:])
    if version != IDX_VERSION:
        raise FormatError(f"{path} is an index of version {version}; only version {IDX_VERSION} is known")
    if code not in DTYPE_OF_CODE:
        raise FormatError(f"{path} has token type code {code}; known are {sorted(DTYPE_OF_CODE)}")
    if num_indices < 1:
        raise FormatError(f"{path} has no document indices, not even the first 0; it is damaged")
    return DTYPE_OF_CODE[code], num_sequences, num_indices


def sibling(prefix: Path, ending: str) -> Path:
    """Return the path `prefix` + `ending`, also where the prefix itself has dots.

    Raises:
        ConfigError: The prefix ends in no name.
    """
    if prefix.name in ("", ".."):
        raise ConfigError(f"{prefix} names no file; give the path of the files without their endings")
    return prefix.with_name(prefix.name + ending)


def check_index(tokens: TokenFile) -> None:
    """Look at every sequence of an index, in blocks.

    Raises:
        FormatError: Sequences leave the `.bin`, or documents are out of order.
    """
    path = sibling(tokens.prefix, ".idx")
    bin_bytes = tokens.num_tokens * tokens.dtype.itemsize
    count = len(tokens.sequence_lengths)
    for first in range(0, count, CHECK_BLOCK):
        lengths = tokens.sequence_lengths[first : first + CHECK_BLOCK]
        begins = tokens.pointers[first : first + CHECK_BLOCK]
        # Room is compared, since a pointer near 2^63 and its length would wrap.
        room = (bin_bytes - np.clip(begins, 0, bin_bytes)) // tokens.dtype.itemsize
        bad = (lengths < 0) | (begins < 0) | (begins > bin_bytes) | (lengths > room)
        bad |= begins % tokens.dtype.itemsize != 0
        if bad.any():
            sequence = first + int(np.argmax(bad))
            raise FormatError(
                f"{path}: sequence {sequence} ({counted(tokens.sequence_lengths[sequence], 'token')} from "
                "byte "
                f"{tokens.pointers[sequence]}) leaves its .bin of {bin_bytes} bytes; the two files are of "
                "different runs or one was cut"
            )
    indices = tokens.document_indices
    if indices[0] != 0 or indices[-1] != count:
        raise FormatError(
            f"{path}: document indices run from {indices[0]} to {indices[-1]}, not from 0 to {count}; "
            "it is damaged"
        )
    for first in range(0, len(indices) - 1, CHECK_BLOCK):
        if (np.diff(indices[first : first + CHECK_BLOCK + 1]) < 0).any():
            raise FormatError(f"{path}: document indices go backwards; it is damaged")


def read_manifest(prefix: Path) -> Manifest | None:
    """Return the manifest of a token file, or None where there is none (as with Megatron's own files).

    Raises:
        FormatError: The manifest is damaged, of a newer version, or of another run than `.bin` and `.idx`.
    """
    path = sibling(prefix, ".json")
    if not path.is_file():
        return None
    raw = read_json(path, remedy="preprocess again or remove it")
    manifest = _parse_manifest(raw, path)
    idx_path, bin_path = sibling(prefix, ".idx"), sibling(prefix, ".bin")
    if idx_path.is_file() and bin_path.is_file():
        dtype, num_sequences, num_indices = read_idx_header(idx_path)
        found = (num_sequences, num_indices - 1, bin_path.stat().st_size // dtype.itemsize)
        if found != (manifest.num_sequences, manifest.num_documents, manifest.num_tokens):
            raise FormatError(
                f"{path} states {counted(manifest.num_documents, 'document')}, "
                f"{counted(manifest.num_tokens, 'token')}, but the "
                f"files beside it hold {counted(found[1], 'document')}, {counted(found[2], 'token')}; they "
                "are of different runs, "
                "so preprocess again"
            )
    return manifest


def _parse_manifest(raw: object, path: Path) -> Manifest:
    if isinstance(raw, dict) and raw.get("kind") == "sft":
        raise FormatError(f"{path} belongs to instruction data (docs/formats/sft.md), not to plain text")
    if not isinstance(raw, dict) or not isinstance(raw.get("version"), int):
        raise FormatError(f"{path} is no manifest of a token file (it has no version)")
    if raw["version"] > MANIFEST_VERSION:
        raise FormatError(
            f"{path} is a manifest of version {raw['version']}; this program reads up to "
            f"{MANIFEST_VERSION}, so update it"
        )
    fields = {field.name: field for field in dataclasses.fields(Manifest)}
    missing = [
        name for name, field in fields.items() if name not in raw and field.default is dataclasses.MISSING
    ]
    unknown = sorted(raw.keys() - fields.keys())
    if missing or unknown:
        raise FormatError(
            f"{path} is no manifest of version {raw['version']}: missing {missing}, unknown {unknown}"
        )
    check_types(raw, MANIFEST_TYPES, path)
    return Manifest(**{**raw, "sources": tuple(raw["sources"])})


def check_types(manifest: Mapping[str, object], types: Mapping[str, tuple[type, ...]], path: Path) -> None:
    """Raise FormatError for fields of a manifest of another type than `types` says, or than int.

    Lists, of which a manifest has `sources` alone, must have texts; an int has 64 bits.
    """
    wrong = [
        name
        for name, value in manifest.items()
        if type(value) not in types.get(name, (int,))
        or (isinstance(value, int) and not -MOST <= value <= MOST)
        or (isinstance(value, list) and not all(isinstance(entry, str) for entry in value))
    ]
    if wrong:
        raise FormatError(f"{path} has values of a wrong type in {wrong}")


def manifest_json(manifest: Manifest) -> str:
    """Return the text of a manifest file."""
    return json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False) + "\n"
