"""Texts to ids: long texts in pieces, and a sample of every run compared with the reference encoder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3_data.encode.engines import Engine
from qwen3_data.encode.splitting import head_of_text, split_stream, split_text
from qwen3_data.input.long_text import LongText
from qwen3_data.input.records import Batch, Text
from qwen3_data.write.token_writer import DOCUMENT, OPEN, SEQUENCE
from qwen3_model.errors import FormatError

Cut = Callable[[str], list[str]]

PIECE_CHARS = 1 << 19
"""Longer texts are cut, so that all cores share them and memory stays bounded."""
CHUNK_CHARS = 8 << 20
"""Text that is encoded in one call."""
CHECK_CHARS = 4096
"""Beginning of a sampled document that is compared."""
SHOWN_IDS = 8
"""Ids on each side of a difference that its message quotes."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of some pieces of one key's documents."""

    key: str
    ids_T: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    ends: NDArray[np.uint8]
    """What ends with each piece: OPEN, SEQUENCE or DOCUMENT."""
    num_chars: int
    finished: Batch | None
    """The batch that ends here; None for what comes before."""


class Reference(Protocol):
    """Encodes one text at a time."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ...


class Checker:
    """Compares one document of each batch with the reference."""

    def __init__(self, reference: Reference, *, splits: bool) -> None:
        self._reference, self._splits = reference, splits
        self.num_checked = 0

    def check(self, texts: Sequence[str], ids_T: NDArray[np.uint32], offsets: NDArray[np.int64]) -> None:
        """Raise FormatError where the ids of one of the texts differ from the reference's."""
        if not texts:
            return
        index = (self.num_checked * 2654435761) % len(texts)
        text = texts[index]
        if len(text) > CHECK_CHARS:
            if not self._splits:
                return
            text = head_of_text(text, CHECK_CHARS)
        wanted = np.array(self._reference.encode(text), dtype=np.uint32)
        got = ids_T[offsets[index] : offsets[index + 1]]
        if len(text) < len(texts[index]):
            got = got[: len(wanted)]
        self.num_checked += 1
        if not np.array_equal(wanted, got):
            raise FormatError(_difference(text, wanted, got))


def encode_batches(
    batches: Iterator[Batch], engine: Engine, *, splits: bool, checker: Checker | None, cut: Cut | None = None
) -> Iterator[Encoded]:
    """Yield the ids of each batch, in pieces of at most about CHUNK_CHARS.

    Nothing is given out before a sample of it equals the reference's.

    Args:
        batches: Texts.
        engine: Encodes them.
        splits: Whether long texts may be cut at borders.
        checker: Compares samples.
        cut: Makes the sentences of a text, each a sequence; None for one sequence per document.
    """
    nothing = (np.empty(0, dtype=np.uint32), np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.uint8))
    for batch in batches:
        for key, texts in batch.texts.items():
            for pieces, ends in _chunks(texts, cut, splits=splits):
                ids_T, offsets = engine.encode(pieces)
                if checker is not None:
                    checker.check(pieces, ids_T, offsets)
                num_chars = sum(map(len, pieces))
                yield Encoded(key, ids_T, offsets, np.array(ends, dtype=np.uint8), num_chars, None)
        yield Encoded(key, *nothing, 0, batch)


def _chunks(texts: Sequence[Text], cut: Cut | None, *, splits: bool) -> Iterator[tuple[list[str], list[int]]]:
    pieces: list[str] = []
    ends: list[int] = []
    held = 0
    for text in texts:
        if isinstance(text, LongText) and (cut is not None or not splits):
            text = "".join(text.chunks())
        if isinstance(text, list) or (cut is not None and isinstance(text, str)):
            sentences = (text if isinstance(text, list) or cut is None else cut(text)) or [""]
            pieces += sentences
            ends += [SEQUENCE] * (len(sentences) - 1) + [DOCUMENT]
            held += sum(map(len, sentences))
            if held >= CHUNK_CHARS:
                yield pieces, ends
                pieces, ends, held = [], [], 0
            continue
        if isinstance(text, str) and (len(text) <= PIECE_CHARS or not splits):
            pieces.append(text)
            ends.append(DOCUMENT)
            held += len(text)
        else:
            for piece in _pieces(text):
                pieces.append(piece)
                ends.append(OPEN)
                held += len(piece)
                if held >= CHUNK_CHARS:
                    yield pieces, ends
                    pieces, ends, held = [], [], 0
            # An empty piece closes the document, whether or not its last piece went out already.
            pieces.append("")
            ends.append(DOCUMENT)
        if held >= CHUNK_CHARS:
            yield pieces, ends
            pieces, ends, held = [], [], 0
    if pieces:
        yield pieces, ends


def _pieces(text: str | LongText) -> Iterator[str]:
    if isinstance(text, str):
        return split_text(text, PIECE_CHARS)
    return split_stream(text.chunks(), PIECE_CHARS)


def _difference(text: str, wanted: NDArray[np.uint32], got: NDArray[np.uint32]) -> str:
    same = 0
    while same < min(len(wanted), len(got)) and wanted[same] == got[same]:
        same += 1
    part = slice(max(0, same - SHOWN_IDS), same + SHOWN_IDS)
    return (
        f"fastokens and tokenizers disagree at token {same} of a text that begins {text[:60]!r}: "
        f"fastokens {got[part].tolist()}, tokenizers {wanted[part].tolist()}; pass --engine tokenizers, and "
        "please report the text"
    )
