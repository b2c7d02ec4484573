"""Whether a token file is whole and fits its manifest and tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwen3_data.encode.tokenizer_facts import read_tokenizer
from qwen3_data.runs.combine import find_gap
from qwen3_model.command.plain_text import counted
from qwen3_model.command.progress import Progress
from qwen3_model.errors import FormatError
from qwen3_model.text.tokens import Manifest, TokenFile, open_tokens, read_manifest

BLOCK_TOKENS = 4 << 20
SHOWN = 3
"""Documents named per kind of problem."""


def verify_tokens(
    prefix: Path, tokenizer_dir: Path | None, vocab_size: int | None, *, quiet: bool
) -> tuple[list[str], list[str]]:
    """Return what is wrong with a token file, and what deserves a word.

    Args:
        prefix: Path without ending.
        tokenizer_dir: Compare the manifest with this tokenizer.
        vocab_size: Ids must be below; of the tokenizer or manifest by default.
        quiet: Show no progress.
    """
    try:
        tokens, manifest = open_tokens(prefix), read_manifest(prefix)
    except FormatError as error:
        return [str(error)], []
    problems: list[str] = []
    notes: list[str] = []
    gap = find_gap(tokens)
    if gap is not None:
        problems.append(f"{prefix}: the .bin has a gap, overlap or rest at sequence {gap}")
    if manifest is None:
        notes.append(f"{prefix} has no manifest: end-of-document ids are not checked")
    else:
        vocab_size = vocab_size or manifest.vocab_size
        problems += _missing_ends(tokens, manifest, prefix)
    if tokenizer_dir is not None:
        facts = read_tokenizer(tokenizer_dir, None)
        vocab_size = vocab_size or facts.vocab_size
        if manifest is not None and manifest.tokenizer_sha256 != facts.sha256:
            problems.append(
                f"{prefix} was made with {manifest.tokenizer_name}, sha256 {manifest.tokenizer_sha256[:12]}, "
                f"not with {tokenizer_dir}, sha256 {facts.sha256[:12]}"
            )
    if vocab_size is None:
        notes.append(f"{prefix}: the range of ids is not checked; give --vocab-size or --tokenizer-dir")
    else:
        problems += _ids_out_of_range(tokens, vocab_size, prefix, quiet=quiet)
    return problems, notes


def _missing_ends(tokens: TokenFile, manifest: Manifest, prefix: Path) -> Iterator[str]:
    if not manifest.eod_appended or not len(tokens.ids):
        return
    stops = tokens.document_indices[1:][np.diff(tokens.document_indices) > 0] - 1
    lasts = tokens.pointers[stops] // tokens.dtype.itemsize + tokens.sequence_lengths[stops] - 1
    wrong = np.flatnonzero(tokens.ids[lasts] != manifest.eod_id)
    if len(wrong):
        shown = stops[wrong[:SHOWN]].tolist()
        yield (
            f"{prefix}: {counted(len(wrong), 'document')} without the end-of-document id {manifest.eod_id} "
            "at the "
            f"end; the first end with sequences {shown}"
        )


def _ids_out_of_range(tokens: TokenFile, vocab_size: int, prefix: Path, *, quiet: bool) -> Iterator[str]:
    with Progress("verify", tokens.num_tokens, "tok", quiet=quiet) as progress:
        for first in range(0, tokens.num_tokens, BLOCK_TOKENS):
            ids = tokens.ids[first : first + BLOCK_TOKENS]
            if int(ids.max()) >= vocab_size or int(ids.min()) < 0:
                index = first + int(np.argmax((ids >= vocab_size) | (ids < 0)))
                at_byte = index * tokens.dtype.itemsize
                sequence = int(np.searchsorted(tokens.pointers, at_byte, side="right")) - 1
                yield (
                    f"{prefix}: token {index} (sequence {sequence}) is {tokens.ids[index]}, outside the "
                    f"vocabulary of {vocab_size}"
                )
                return
            progress.advance(len(ids))
