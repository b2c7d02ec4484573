"""Whether instruction data are whole and fit their manifest and tokenizer."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwen3_data.runs.combine import find_gap
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import FormatError
from qwen3_model.text.sft import SftFile, open_sft
from qwen3_model.text.tokenizer import Qwen3Tokenizer

BLOCK_TOKENS = 4 << 20


def verify_sft(prefix: Path, tokenizer: Qwen3Tokenizer | None, vocab_size: int | None) -> list[str]:
    """Return what is wrong with instruction data.

    Args:
        prefix: Path without ending.
        tokenizer: Its hash and chat template must be those of the manifest.
        vocab_size: Ids must be below; of the manifest by default.
    """
    try:
        file = open_sft(prefix)
    except FormatError as error:
        return [str(error)]
    return [f"{prefix}: {problem}" for problem in _problems(file, tokenizer, vocab_size)]


def _problems(file: SftFile, tokenizer: Qwen3Tokenizer | None, vocab_size: int | None) -> Iterator[str]:
    tokens, manifest = file.tokens, file.manifest
    gap = find_gap(tokens)
    if gap is not None:
        yield f"the .bin has a gap, overlap or rest at conversation {gap}"
        return
    if tokenizer is not None:
        if tokenizer.sha256 != manifest.tokenizer_sha256:
            yield f"made with {manifest.tokenizer_name}, not with {tokenizer.name}"
        elif hashlib.sha256(tokenizer.chat_template.encode()).hexdigest() != manifest.template_sha256:
            yield f"made with another chat template than that of {tokenizer.name}"
    limit = vocab_size or manifest.vocab_size
    with_loss = 0
    for first in range(0, tokens.num_tokens, BLOCK_TOKENS):
        ids, mask = tokens.ids[first : first + BLOCK_TOKENS], file.mask_T[first : first + BLOCK_TOKENS]
        foreign = (ids >= limit) | (ids < 0)
        if foreign.any():
            at = int(foreign.argmax())
            yield f"token {first + at} is {ids[at]}, outside the vocabulary of {limit}"
            return
        if mask.max() > 1:
            at = int((mask > 1).argmax())
            yield f"byte {first + at} of the .mask is {mask[at]}, neither 0 nor 1"
            return
        with_loss += int(mask.sum())
    if with_loss != manifest.num_loss_tokens:
        yield f"{with_loss} tokens carry loss, but the manifest says {manifest.num_loss_tokens}"
    yield from _lengths(file)


def _lengths(file: SftFile) -> Iterator[str]:
    tokens, limit = file.tokens, file.manifest.seq_length
    lengths = tokens.sequence_lengths.astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    packs = np.diff(ends[tokens.document_indices])
    if len(packs) and packs.max() > limit:
        yield (
            f"sequence {int(packs.argmax())} has {counted(packs.max(), 'token')}, more than seq_length "
            f"{limit}"
        )
    if len(packs) and packs.min() == 0:
        yield f"sequence {int(packs.argmin())} holds no conversation"
    begins = ends[:-1][lengths > 0]
    if file.mask_T[begins].any():
        at = int(file.mask_T[begins].argmax())
        yield f"conversation {at} begins with a token that carries loss, which nothing predicts"
    learned = np.add.reduceat(file.mask_T, begins, dtype=np.int64) if len(begins) else np.ones(0)
    if not learned.all():
        yield f"conversation {int((learned == 0).argmax())} has no token that carries loss"
