"""Texts to ids: long texts are cut, and a text of each chunk is compared with a reference encoder."""

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
"""Returns the sentences of a text."""
Piece = tuple[str, int]
"""A text, and what ends with it: OPEN, SEQUENCE or DOCUMENT."""

PIECE_CHARS = 1 << 19
"""Longer texts are cut, so that all cores share them and memory stays bounded."""
CHUNK_CHARS = 8 << 20
"""Text that is encoded in one call."""
CHECK_CHARS = 4096
"""Beginning of a sampled document that is compared."""
CHECK_EVERY_CHARS = 1 << 16
"""Text between two samples: chunks are as small as files are, and the reference takes half a millisecond."""
SHOWN_IDS = 8
"""Ids on each side of a difference that its message quotes."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of a chunk of one key's documents."""

    key: str
    ids_T: NDArray[np.uint32]
    offsets: NDArray[np.int64]
    ends: NDArray[np.uint8]
    """What ends with each piece: OPEN, SEQUENCE or DOCUMENT."""
    num_chars: int
    finished: Batch | None
    """The batch that ends here; None for what comes before."""


class Reference(Protocol):
    """The encoder that others are compared with; it takes one text at a time."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ...


class Checker:
    """Compare the ids of one text of each chunk with those of a reference encoder.

    Of small chunks one of several is compared.
    """

    def __init__(self, reference: Reference, *, splits: bool) -> None:
        self._reference, self._splits = reference, splits
        self._unchecked_chars = CHECK_EVERY_CHARS  # so that the first chunk is compared, whatever its size
        self.num_checked = 0

    def check(self, texts: Sequence[str], ids_T: NDArray[np.uint32], offsets: NDArray[np.int64]) -> None:
        """Raise FormatError where the ids of one of the texts differ from the reference's."""
        if not texts:
            return
        self._unchecked_chars += sum(map(len, texts))
        if self._unchecked_chars < CHECK_EVERY_CHARS:
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
        self._unchecked_chars = 0
        if not np.array_equal(wanted, got):
            raise FormatError(_difference(text, wanted, got))


def encode_batches(
    batches: Iterator[Batch], engine: Engine, *, splits: bool, checker: Checker | None, cut: Cut | None = None
) -> Iterator[Encoded]:
    """Yield the ids of each batch in chunks of about CHUNK_CHARS characters, then the end of the batch.

    Args:
        batches: The documents' texts, by key.
        engine: Encodes them.
        splits: Whether long texts may be cut at borders.
        checker: Compares a text of each chunk, or of one of several small ones, with the reference before the
        chunk is yielded; None for no check.
        cut: Splits a text into sentences, each a sequence; None for one sequence per document.

    Raises:
        FormatError: The engine's ids of a compared text differ from the reference's.
    """
    nothing = (np.empty(0, dtype=np.uint32), np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.uint8))
    for batch in batches:
        for key, texts in batch.texts.items():
            for chunk in _chunks(texts, cut, splits=splits):
                ids_T, offsets = engine.encode(chunk.texts)
                if checker is not None:
                    checker.check(chunk.texts, ids_T, offsets)
                ends = np.array(chunk.ends, dtype=np.uint8)
                yield Encoded(key, ids_T, offsets, ends, chunk.num_chars, None)
        yield Encoded(key, *nothing, 0, batch)


class _Chunk:
    """Texts that are encoded in one call, and what ends with each: OPEN, SEQUENCE or DOCUMENT."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.ends: list[int] = []
        self.num_chars = 0

    def add(self, pieces: Sequence[Piece]) -> None:
        """Add pieces at the end."""
        for text, end in pieces:
            self.texts.append(text)
            self.ends.append(end)
            self.num_chars += len(text)


def _chunks(texts: Sequence[Text], cut: Cut | None, *, splits: bool) -> Iterator[_Chunk]:
    """Yield the texts of documents in chunks of at least CHUNK_CHARS; the last one may be smaller."""
    chunk = _Chunk()
    for text in texts:
        for pieces in _pieces(text, cut, splits=splits):
            chunk.add(pieces)
            if chunk.num_chars >= CHUNK_CHARS:
                yield chunk
                chunk = _Chunk()
    if chunk.texts:
        yield chunk


def _pieces(text: Text, cut: Cut | None, *, splits: bool) -> Iterator[list[Piece]]:
    """Yield the pieces of one document in groups; pieces of a group are encoded in one call."""
    if isinstance(text, LongText) and (cut is not None or not splits):
        text = "".join(text.chunks())
    if isinstance(text, str) and cut is not None:
        text = cut(text)
    if isinstance(text, list):
        *earlier, last = text or [""]
        yield [*((sentence, SEQUENCE) for sentence in earlier), (last, DOCUMENT)]
    elif isinstance(text, str) and (len(text) <= PIECE_CHARS or not splits):
        yield [(text, DOCUMENT)]
    else:
        for piece in _split(text):
            yield [(piece, OPEN)]
        # An empty piece closes the document, for nothing says beforehand which of its pieces is the last.
        yield [("", DOCUMENT)]


def _split(text: str | LongText) -> Iterator[str]:
    """Yield a long text in pieces of about PIECE_CHARS, cut at borders."""
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
