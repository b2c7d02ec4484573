"""Token files joined or cut at documents, in constant memory."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from qwen3_data.runs.provenance import joint_manifest, part_manifest
from qwen3_data.write.token_writer import idx_header
from qwen3_data.write.workspace import Workspace, refuse_existing_outputs
from qwen3_model.command.files import require_free_space
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.text.tokens import Manifest, TokenFile, manifest_json, open_tokens, read_manifest, sibling

BLOCK = 1 << 20
"""Index entries in memory at once."""
COPY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """Documents `first` to `last` (not included) of a token file."""

    tokens: TokenFile
    first: int
    last: int

    @property
    def sequences(self) -> tuple[int, int]:
        """First sequence, and the one after the last."""
        indices = self.tokens.document_indices
        return int(indices[self.first]), int(indices[self.last])

    @property
    def bytes(self) -> tuple[int, int]:
        """Begin and end in `.bin`."""
        first, last = self.sequences
        pointers = self.tokens.pointers
        begin = int(pointers[first]) if first < len(pointers) else self.tokens.ids.nbytes
        end = int(pointers[last]) if last < len(pointers) else self.tokens.ids.nbytes
        return (begin, end) if first < last else (begin, begin)

    @property
    def counts(self) -> dict[str, int]:
        """What a manifest counts."""
        first, last = self.sequences
        begin, end = self.bytes
        return {
            "num_documents": self.last - self.first,
            "num_sequences": last - first,
            "num_tokens": (end - begin) // self.tokens.dtype.itemsize,
        }


def find_token_files(inputs: Sequence[Path]) -> list[Path]:
    """Return the prefixes that `inputs` name, those in a folder sorted.

    Raises:
        ConfigError: A folder holds no index.
    """
    prefixes: list[Path] = []
    for entry in inputs:
        if entry.is_dir():
            found = sorted(path.with_suffix("") for path in entry.glob("*.idx"))
            if not found:
                raise ConfigError(f"the folder {entry} holds no .idx file")
            prefixes += found
        else:
            prefixes.append(entry.with_suffix("") if entry.suffix in (".bin", ".idx") else entry)
    return prefixes


def merge_tokens(
    prefixes: Sequence[Path], output: Path, *, force: bool, allow_incomplete: bool = False
) -> Path:
    """Write the documents of all `prefixes`, in order, to the token file `output`.

    Args:
        prefixes: Paths of the token files, without ending.
        output: Prefix of the result.
        force: Replace an existing one.
        allow_incomplete: Shares of a run may be missing.

    Raises:
        ConfigError: The output is one of the inputs, or shares of a run are missing, repeated or mixed.
        FormatError: They differ in token type or tokenizer, or one is damaged.
    """
    if output.resolve() in [prefix.resolve() for prefix in prefixes]:
        raise ConfigError(f"{output} is input and output of the merge; choose another output")
    refuse_existing_outputs([output], force=force)
    files = [open_tokens(prefix) for prefix in prefixes]
    for file in files:
        _check_contiguous(file)
        if file.dtype != files[0].dtype:
            raise FormatError(
                f"{file.prefix} has {file.dtype} tokens, but {files[0].prefix} has {files[0].dtype}; make "
                "them with the same --id-dtype"
            )
    manifests = [read_manifest(prefix) for prefix in prefixes]
    manifest = joint_manifest(prefixes, manifests, allow_incomplete=allow_incomplete)
    parts = [Part(file, 0, file.num_documents) for file in files]
    _write([(output, parts, manifest)], output, force=force)
    return output


def split_tokens(prefix: Path, output: Path, weights: Sequence[float], *, force: bool) -> list[Path]:
    """Cut a token file into consecutive parts `<output>_00000`, ... with tokens in proportion to `weights`.

    Merging the parts in order gives the bytes of the whole.

    Raises:
        ConfigError: A part would hold no document.
        FormatError: The file is damaged.
    """
    tokens, manifest = open_tokens(prefix), read_manifest(prefix)
    _check_contiguous(tokens)
    borders = _document_borders(tokens, weights)
    for number, (first, last) in enumerate(itertools.pairwise(borders)):
        if first == last:
            raise ConfigError(
                f"part {number} of {len(weights)} would hold no document; {prefix} has "
                f"{counted(tokens.num_documents, 'document')}, so ask for fewer or more equal parts"
            )
    outputs = [output.with_name(f"{output.name}_{number:05d}") for number in range(len(weights))]
    refuse_existing_outputs(outputs, force=force)
    jobs: list[tuple[Path, list[Part], Manifest | None]] = []
    for name, first, last in zip(outputs, borders[:-1], borders[1:], strict=True):
        part = Part(tokens, first, last)
        own = manifest and part_manifest(manifest, len(jobs), len(outputs), part.counts)
        jobs.append((name, [part], own))
    _write(jobs, output, force=force)
    return outputs


def _document_borders(tokens: TokenFile, weights: Sequence[float]) -> list[int]:
    """Return the document at which each part begins, and their number: where the tokens come nearest."""
    ends = np.append(tokens.pointers, tokens.ids.nbytes)[tokens.document_indices]
    targets = np.cumsum(weights) / np.sum(weights) * tokens.ids.nbytes
    borders = [int(np.abs(ends - target).argmin()) for target in targets[:-1]]
    return [0, *borders, tokens.num_documents]


def _write(jobs: list[tuple[Path, list[Part], Manifest | None]], output: Path, *, force: bool) -> None:
    """Write several token files, which appear together after all are whole."""
    needed_bytes = sum(part.bytes[1] - part.bytes[0] for _, parts, _ in jobs for part in parts)
    require_free_space(output.parent, needed_bytes)
    inputs = {sibling(part.tokens.prefix, ".bin") for _, parts, _ in jobs for part in parts}
    inputs |= {path.with_name(path.name.removesuffix(".bin") + ".idx") for path in inputs}
    found = {path: _state(path) for path in inputs}
    workspace = Workspace(output, force=force, resume=False)
    try:
        for name, parts, manifest in jobs:
            grown = workspace.folder / name.name
            with sibling(grown, ".bin").open("wb", buffering=0) as file:
                for part in parts:
                    _copy_range(sibling(part.tokens.prefix, ".bin"), file, *part.bytes)
                os.fsync(file.fileno())
            with sibling(grown, ".idx").open("wb") as index:
                _write_index(index, parts)
                index.flush()
                os.fsync(index.fileno())
            if manifest is not None:
                sibling(grown, ".json").write_text(manifest_json(manifest), encoding="utf-8")
        if changed := [path for path, state in found.items() if _state(path) != state]:
            raise FormatError(f"{changed[0]} changed while it was read; begin anew when nobody writes to it")
        workspace.commit([name.name for name, _, _ in jobs])
    finally:
        workspace.remove()


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def _copy_range(path: Path, output: IO[bytes], begin: int, end: int) -> None:
    with path.open("rb", buffering=0) as source:
        source.seek(begin)
        left = end - begin
        while left:
            copied = os.sendfile(output.fileno(), source.fileno(), None, min(left, COPY_BYTES))
            if not copied:
                raise FormatError(f"{path} was cut while it was read")
            left -= copied


def _write_index(file: IO[bytes], parts: list[Part]) -> None:
    num_sequences = sum(part.sequences[1] - part.sequences[0] for part in parts)
    num_documents = sum(part.last - part.first for part in parts)
    file.write(idx_header(parts[0].tokens.dtype, num_sequences, num_documents))
    for part in parts:
        for block in _blocks(part.tokens.sequence_lengths, *part.sequences):
            file.write(block.tobytes())
    base = 0
    for part in parts:
        begin, end = part.bytes
        for block in _blocks(part.tokens.pointers, *part.sequences):
            file.write((block + (base - begin)).tobytes())
        base += end - begin
    base = 0
    file.write(np.zeros(1, dtype="<i8").tobytes())
    for part in parts:
        first, last = part.sequences
        for block in _blocks(part.tokens.document_indices, part.first + 1, part.last + 1):
            file.write((block + (base - first)).tobytes())
        base += last - first


def _blocks(values: NDArray[np.integer], first: int, last: int) -> Iterator[NDArray[np.integer]]:
    for begin in range(first, last, BLOCK):
        yield values[begin : min(begin + BLOCK, last)]


def _check_contiguous(tokens: TokenFile) -> None:
    """Refuse a file whose sequences do not lie back to back."""
    at = find_gap(tokens)
    if at is not None:
        raise FormatError(
            f"{tokens.prefix}: sequence {at} does not begin where the one before ends; such files cannot be "
            "merged or split"
        )


def find_gap(tokens: TokenFile) -> int | None:
    """Return the first sequence that does not begin where the one before ends; their number for a rest."""
    wanted = 0
    count = len(tokens.sequence_lengths)
    for first in range(0, count, BLOCK):
        begins = tokens.pointers[first : first + BLOCK]
        lengths = tokens.sequence_lengths[first : first + BLOCK].astype(np.int64)
        stops = begins + lengths * tokens.dtype.itemsize
        bad = begins != np.concatenate([[wanted], stops[:-1]])
        if bad.any():
            return first + int(bad.argmax())
        wanted = int(stops[-1])
    return None if wanted == tokens.ids.nbytes else count
