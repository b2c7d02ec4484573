"""Megatron's `.bin` and `.idx` version 1, written as a stream: memory does not grow with the documents."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from qwen3_model.command.plain_text import counted
from qwen3_model.errors import FormatError
from qwen3_model.text.tokens import CODE_OF_DTYPE, HEADER, IDX_VERSION, MAGIC

COPY_VALUES = 1 << 20
"""Index entries in memory at once while the index is put together."""

INT32 = np.dtype("<i4")
INT64 = np.dtype("<i8")
OPEN, SEQUENCE, DOCUMENT = 0, 1, 2
"""What ends with a piece of text; a document's end is its last sequence's too."""
MAX_SEQUENCE = np.iinfo(np.int32).max
UINT16_BELOW_VOCAB = 65500
"""Megatron's limit: smaller vocabularies are stored in two bytes."""


def choose_dtype(name: str, vocab_size: int) -> np.dtype[np.integer]:
    """Return the type of a token on disk for `auto`, `int32` or `uint16`.

    Raises:
        FormatError: uint16 cannot hold the vocabulary.
    """
    if name == "uint16" and vocab_size > 1 << 16:
        raise FormatError(
            f"--id-dtype uint16 cannot hold a vocabulary of {vocab_size}; use --id-dtype auto or int32"
        )
    if name == "uint16" or (name == "auto" and vocab_size < UINT16_BELOW_VOCAB):
        return np.dtype("<u2")
    return INT32


@dataclass(frozen=True, slots=True)
class WriterState:
    """How far the three files of a writer have come, in bytes and counts."""

    bin_bytes: int = 0
    num_sequences: int = 0
    num_documents: int = 0
    num_empty: int = 0


class TokenWriter:
    """Appends documents to `<stem>.bin` and notes what the index needs in two files beside it."""

    def __init__(
        self, stem: Path, dtype: np.dtype[np.integer], eod_id: int | None, state: WriterState | None = None
    ) -> None:
        state = state or WriterState()
        self.stem, self.dtype, self.eod_id = stem, dtype, eod_id
        self.bin_bytes = state.bin_bytes
        self.num_sequences, self.num_documents = state.num_sequences, state.num_documents
        self.busy_s = 0.0
        """Time spent in `add`."""
        self.num_empty = state.num_empty
        """Documents without a sequence."""
        self._open_tokens = 0
        self._documents_end = state.num_sequences
        self._bin = _open_at(stem.with_name(stem.name + ".bin"), state.bin_bytes)
        self._lengths = _open_at(stem.with_name(stem.name + ".lengths"), 4 * state.num_sequences)
        self._documents = _open_at(stem.with_name(stem.name + ".documents"), 8 * state.num_documents)

    @property
    def num_tokens(self) -> int:
        """Tokens written, end-of-document ones included."""
        return self.bin_bytes // self.dtype.itemsize

    @property
    def state(self) -> WriterState:
        """Where a later run can go on; only between documents."""
        return WriterState(self.bin_bytes, self.num_sequences, self.num_documents, self.num_empty)

    def add(self, ids_T: NDArray[np.integer], offsets: NDArray[np.int64], ends: NDArray[np.uint8]) -> None:
        """Append pieces of documents.

        Args:
            ids_T: Ids of all pieces.
            offsets: Begin of each piece in `ids_T`, and the end of the last.
            ends: What ends with each piece: OPEN (goes on with the next call), SEQUENCE or DOCUMENT.

        Raises:
            FormatError: A document has more tokens than the index can say.
        """
        begin_s = time.perf_counter()
        stops = offsets[1:][ends != OPEN]
        closes = ends[ends != OPEN] == DOCUMENT
        lengths = np.diff(stops, prepend=0)
        if len(stops):
            lengths[0] += self._open_tokens
            self._open_tokens = int(offsets[-1] - stops[-1])
        else:
            self._open_tokens += int(offsets[-1])
        holds_text = lengths > 0
        if self.eod_id is not None:
            last = holds_text & closes
            ids_T = _insert(ids_T, stops[last], self.eod_id, self.dtype)
            lengths[last] += 1
        if len(lengths) and lengths.max() > MAX_SEQUENCE:
            raise FormatError(
                f"document {self.num_documents + int(lengths.argmax())} has "
                f"{counted(lengths.max(), 'token')}, more "
                f"than the {MAX_SEQUENCE} that an index can hold; cut it in two"
            )
        self._append(ids_T, lengths[holds_text], np.cumsum(holds_text, dtype=INT64)[closes])
        self.busy_s += time.perf_counter() - begin_s

    def add_document(self, ids_T: NDArray[np.uint32], lengths: NDArray[np.int64]) -> None:
        """Append one document of several sequences, as they are.

        Args:
            ids_T: Ids of all sequences.
            lengths: Tokens of each sequence, none 0.
        """
        self._append_bin(ids_T)
        _write_all(self._lengths, lengths.astype(INT32).tobytes())
        self.num_sequences += len(lengths)
        self.num_documents += 1
        _write_all(self._documents, np.array([self.num_sequences], dtype=INT64).tobytes())

    def _append_bin(self, ids_T: NDArray[np.integer]) -> None:
        raw = np.ascontiguousarray(ids_T, dtype=self.dtype).data.cast("B")
        _write_all(self._bin, raw)
        self.bin_bytes += len(raw)

    def _append(
        self, ids_T: NDArray[np.integer], lengths: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> None:
        """Append sequences; `counts` says how many of them are written when each document ends."""
        self._append_bin(ids_T)
        _write_all(self._lengths, lengths.astype(INT32).tobytes())
        counts += self.num_sequences
        _write_all(self._documents, counts.astype(INT64).tobytes())
        if len(counts):
            self.num_empty += int(np.count_nonzero(np.diff(counts, prepend=self._documents_end) == 0))
            self._documents_end = int(counts[-1])
        self.num_sequences += len(lengths)
        self.num_documents += len(counts)

    def sync(self) -> None:
        """Bring everything to the disk."""
        for file in (self._bin, self._lengths, self._documents):
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in (self._bin, self._lengths, self._documents):
            file.close()

    def finish(self) -> None:
        """Put `<stem>.idx` together, bring all to the disk and close."""
        self.close()
        lengths_path = self.stem.with_name(self.stem.name + ".lengths")
        documents_path = self.stem.with_name(self.stem.name + ".documents")
        with self.stem.with_name(self.stem.name + ".idx").open("wb") as file:
            file.write(idx_header(self.dtype, self.num_sequences, self.num_documents))
            for block in _read_blocks(lengths_path, INT32):
                file.write(block.tobytes())
            pointer = 0
            for block in _read_blocks(lengths_path, INT32):
                stops = pointer + np.cumsum(block, dtype=np.int64) * self.dtype.itemsize
                begins = np.concatenate([[pointer], stops[:-1]]).astype(INT64)
                file.write(begins.tobytes())
                pointer = int(stops[-1])
            file.write(np.zeros(1, dtype=INT64).tobytes())
            for block in _read_blocks(documents_path, INT64):
                file.write(block.tobytes())
            file.flush()
            os.fsync(file.fileno())
        with self.stem.with_name(self.stem.name + ".bin").open("rb") as file:
            os.fsync(file.fileno())


def idx_header(dtype: np.dtype[np.integer], num_sequences: int, num_documents: int) -> bytes:
    """Return the 34 bytes that an index begins with."""
    return HEADER.pack(MAGIC, IDX_VERSION, CODE_OF_DTYPE[dtype], num_sequences, num_documents + 1)


def _insert(
    ids_T: NDArray[np.integer], stops: NDArray[np.int64], eod_id: int, dtype: np.dtype[np.integer]
) -> NDArray[np.integer]:
    """Return the ids with `eod_id` put in at each of `stops`."""
    if len(ids_T) < 64 * len(stops):
        return np.insert(ids_T, stops, eod_id)
    # Long documents: copying them one by one is faster than numpy's mask.
    joined = np.empty(len(ids_T) + len(stops), dtype=dtype)
    begin, put = 0, 0
    for stop in stops.tolist():
        length = stop - begin
        joined[put : put + length] = ids_T[begin:stop]
        put += length
        joined[put] = eod_id
        begin, put = stop, put + 1
    joined[put:] = ids_T[begin:]
    return joined


def _open_at(path: Path, size_bytes: int) -> IO[bytes]:
    """Open for appending after the first `size_bytes`; what a dead run wrote behind them goes."""
    held_bytes = path.stat().st_size if path.exists() else 0
    if held_bytes < size_bytes:
        raise FormatError(
            f"{path} lost bytes of the interrupted run; pass --force without --resume to begin anew"
        )
    file = path.open("r+b" if path.exists() else "w+b", buffering=0)
    file.truncate(size_bytes)
    file.seek(size_bytes)
    return file


def _write_all(file: IO[bytes], raw: bytes | memoryview) -> None:
    left = memoryview(raw)
    while left:
        left = left[file.write(left) :]


def _read_blocks(path: Path, dtype: np.dtype[np.integer]) -> Iterator[NDArray[np.integer]]:
    with path.open("rb") as file:
        while raw := file.read(COPY_VALUES * dtype.itemsize):
            yield np.frombuffer(raw, dtype=dtype)
