"""Conversations to token ids and the mask of what is to be predicted, for data files and for training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qwen3_model.command.plain_text import counted
from qwen3_model.text.chat_pieces import Piece
from qwen3_model.text.packing import ChatSample
from qwen3_model.text.tokenizer import Qwen3Tokenizer

Encode = Callable[[list[str]], tuple[NDArray[np.integer], NDArray[np.int64]]]
"""Ids of many texts, joined, and where each text's begin (one more than texts)."""
SHOWN = 3
"""Samples that a sentence names."""


@dataclass(slots=True)
class FitCounts:
    """What became of the samples."""

    num_samples: int = 0
    num_loss_tokens: int = 0
    num_truncated: int = 0
    num_dropped: int = 0
    dropped: list[str] = field(default_factory=list)
    """Origins of the first samples that were left out."""


def encode_with(tokenizer: Qwen3Tokenizer) -> Encode:
    """Return the encoder that a tokenizer is."""

    def encode(texts: list[str]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
        ids = tokenizer.encode_batch(texts)
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in ids], out=offsets[1:])
        flat = [number for part in ids for number in part]
        return np.array(flat, dtype=np.int32), offsets

    return encode


def encode_samples(
    samples: Sequence[Sequence[Piece]], encode: Encode, special_ids: Mapping[str, int]
) -> list[ChatSample]:
    """Encode the texts of many samples in one call; ids int32, masks uint8."""
    texts = [piece.text for pieces in samples for piece in pieces if not piece.is_special]
    ids_T, offsets = encode(texts)
    encoded = []
    number = 0
    for pieces in samples:
        ids: list[NDArray[np.integer]] = []
        masks: list[NDArray[np.uint8]] = []
        for piece in pieces:
            part: NDArray[np.integer]
            if piece.is_special:
                part = np.array([special_ids[piece.text]], dtype=np.int32)
            else:
                part = ids_T[offsets[number] : offsets[number + 1]]
                number += 1
            mask = np.full(len(part), piece.carries_loss, dtype=np.uint8)
            header = piece.unlearned_ids
            if header and tuple(part[: len(header)].tolist()) == header:
                mask[: len(header)] = 0
            ids.append(part)
            masks.append(mask)
        encoded.append(ChatSample(np.concatenate(ids).astype(np.int32), np.concatenate(masks)))
    return encoded


def fit_samples(
    samples: Sequence[ChatSample], origins: Sequence[str], counts: FitCounts, *, limit: int | None, drop: bool
) -> Iterator[ChatSample]:
    """Yield samples of at most `limit` tokens that have something to learn.

    Args:
        samples: Encoded conversations.
        origins: File and record of each, for messages.
        counts: Grows.
        limit: Tokens; None where longer ones are cut later.
        drop: Leave longer ones out instead of cutting them.
    """
    for sample, origin in zip(samples, origins, strict=True):
        fitted, length = sample, len(sample.ids_L)
        if limit is not None and length > limit:
            # The first token of a sequence is predicted from nothing, so its mask does not count.
            if drop or not sample.mask_L[1:limit].any():
                counts.num_dropped += 1
                if len(counts.dropped) < SHOWN:
                    counts.dropped.append(f"{origin} ({counted(length, 'token')})")
                continue
            counts.num_truncated += 1
            fitted = ChatSample(sample.ids_L[:limit], sample.mask_L[:limit])
        counts.num_samples += 1
        counts.num_loss_tokens += int(fitted.mask_L.sum())
        yield fitted
