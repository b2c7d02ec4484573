"""Documents to score: a text, JSON lines, or token files."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from qwen3_infer.folder.model_folder import ModelFolder
from qwen3_infer.text.utf8 import decode_utf8
from qwen3_model.command.json_file import fault_of_line
from qwen3_model.command.small_files import INPUT_BYTES, read_small
from qwen3_model.errors import ConfigError, FormatError, UsageError
from qwen3_model.text.tokens import Manifest, TokenFile, open_tokens, read_manifest, sibling


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text as ids."""

    where: str
    """Names it in messages and results."""
    ids: tuple[int, ...]
    """All its tokens."""
    num_bytes: int
    """Bytes of its text in UTF-8."""
    id: str | int | None = None
    """Value of `id` in the JSON line; None where it has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How files become documents."""

    json_key: str
    """Key of the text in a JSON line."""
    allow_special: bool
    """Whether `<|im_end|>` and the like in a text are tokens."""
    limit: int | None
    """Documents that are read, None for all."""


def check_sources(values: Sequence[str], folder: ModelFolder) -> list[str]:
    """Return what to tell the user about the sources, after a look at each that reads none whole.

    Raises:
        UsageError: There is none.
        ConfigError, FormatError: One is missing, damaged or made with another tokenizer.
    """
    if not values:
        raise UsageError("give the text to score as --input FILE")
    notes = []
    for value in values:
        prefix = _token_prefix(value)
        if prefix is None:
            path = Path(value)
            if not path.is_file():
                what = "is a folder" if path.is_dir() else "does not exist"
                raise FormatError(
                    f"{path} {what}; --input takes a text, a .jsonl file or a prefix of .bin/.idx"
                )
            continue
        tokens, manifest = open_tokens(prefix), read_manifest(prefix)
        if manifest is None:
            notes.append(f"{prefix} has no manifest (.json), so its tokenizer is not checked")
        else:
            _check_manifest(manifest, prefix, folder)
        _check_largest_id(tokens, prefix, folder.tokenizer.vocab_size)
    return notes


def read_documents(values: Sequence[str], folder: ModelFolder, reading: Reading) -> Iterator[Document]:
    """Yield the documents of all sources in their order, at most `limit`.

    Raises:
        FormatError: A file is empty or no UTF-8, or a line is no JSON object with a text.
    """
    number = 0
    for value in values:
        prefix = _token_prefix(value)
        if prefix is not None:
            found = _read_token_file(prefix, folder)
        elif value.lower().endswith(".jsonl"):
            found = _read_json_lines(Path(value), folder, reading)
        else:
            found = _read_text(Path(value), folder, reading)
        for document in found:
            if reading.limit is not None and number >= reading.limit:
                return
            number += 1
            yield document


def data_files(values: Sequence[str]) -> list[Path]:
    """Return the files that the sources are read from, so that no output replaces one."""
    files = []
    for value in values:
        prefix = _token_prefix(value)
        endings = (".bin", ".idx", ".json")
        files += [Path(value)] if prefix is None else [sibling(prefix, ending) for ending in endings]
    return files


def _token_prefix(value: str) -> Path | None:
    """Return the prefix of token files, None for a text."""
    for ending in (".bin", ".idx"):
        if value.endswith(ending):
            return Path(value.removesuffix(ending))
    path = Path(value)
    return path if not path.exists() and sibling(path, ".idx").is_file() else None


def _check_manifest(manifest: Manifest, prefix: Path, folder: ModelFolder) -> None:
    if manifest.tokenizer_sha256 and manifest.tokenizer_sha256 != folder.tokenizer.sha256:
        raise ConfigError(
            f"{prefix} was made with another tokenizer ({manifest.tokenizer_name}) than "
            f"{folder.path / 'tokenizer.json'}; preprocess the data with the model's own"
        )


def _check_largest_id(tokens: TokenFile, prefix: Path, vocab_size: int) -> None:
    block = 1 << 22
    for first in range(0, len(tokens.ids), block):
        part = tokens.ids[first : first + block]
        if (largest := int(part.max())) >= vocab_size or int(part.min()) < 0:
            wrong = largest if largest >= vocab_size else int(part.min())
            raise ConfigError(
                f"{prefix}.bin holds id {wrong}, but the model's tokenizer has {vocab_size} tokens; use data "
                "of the model's tokenizer"
            )


def _read_token_file(prefix: Path, folder: ModelFolder) -> Iterator[Document]:
    tokens = open_tokens(prefix)
    bounds = tokens.document_indices.tolist()
    for number, (first, end) in enumerate(pairwise(bounds)):
        parts = [tokens.sequence(index) for index in range(first, end)]
        if not parts:
            continue
        ids = tuple(map(int, np.concatenate(parts).tolist()))
        text = folder.tokenizer.decode(ids)
        yield Document(where=f"{prefix}, document {number}", ids=ids, num_bytes=len(text.encode()))


def _read_text(path: Path, folder: ModelFolder, reading: Reading) -> Iterator[Document]:
    text = decode_utf8(read_small(path, INPUT_BYTES).removeprefix(b"\xef\xbb\xbf"), str(path))
    if not text:
        raise FormatError(f"{path} is empty; there is nothing to score")
    yield _encode_document(text, str(path), None, folder, reading)


def _read_json_lines(path: Path, folder: ModelFolder, reading: Reading) -> Iterator[Document]:
    with path.open("rb") as file:
        number = 0
        for number, raw in enumerate(file, start=1):
            where = f"{path}, line {number}"
            line = decode_utf8(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, where)
            if not line.strip():
                raise FormatError(f"{where} is blank; every line is a document, so remove it")
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FormatError(f"{where} is not JSON: {fault_of_line(error)}") from None
            text = record.get(reading.json_key) if isinstance(record, dict) else None
            if not isinstance(text, str) or not text:
                raise FormatError(
                    f"{where} has no text at the key {reading.json_key!r}; name another with --json-keys"
                )
            name = record.get("id")
            yield _encode_document(
                text, where, name if isinstance(name, str | int) else None, folder, reading
            )
    if number == 0:
        raise FormatError(f"{path} is empty; write one object a line")


def _encode_document(
    text: str, where: str, name: str | int | None, folder: ModelFolder, reading: Reading
) -> Document:
    try:
        ids = folder.tokenizer.encode(text, allow_special=reading.allow_special)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None
    return Document(where=where, ids=tuple(ids), num_bytes=len(text.encode()), id=name)
