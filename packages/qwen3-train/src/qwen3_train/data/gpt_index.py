"""Which tokens make up which sample: the three index arrays of Megatron's GPTDataset, number for number.

The documents of all epochs are shuffled and laid end to end; sample k covers `seq_length + 1` tokens from
token `k * seq_length` on, so neighbours share one token, the last label of one being the first input of the
next.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_train.data.index_cache import Arrays, MemoryRoom, Room

FINAL_EPOCH_THRESHOLD = 0.80
"""A last epoch of which less than this part is needed is shuffled apart from the others."""
BLOCK_DOCUMENTS = 1_000_000
"""Documents laid out at once; bounds the memory of temporaries to some tens of megabytes."""
BLOCK_SAMPLES = 1_000_000
"""Samples of them at once."""


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """The order of documents and samples of one dataset."""

    documents: NDArray[np.int32]
    """Sequence numbers in the order in which their tokens are read, every epoch's."""
    starts: NDArray[np.int64]
    """[n + 1, 2]: for each sample and for the end, an index into `documents` and an offset therein."""
    order: np.ndarray
    """Sample numbers in the order in which they are served, uint32 or int64."""
    num_epochs: int
    """Passes over the documents."""

    def __len__(self) -> int:
        return len(self.order)


def build_sample_index(
    lengths: NDArray[np.int32],
    sequences: NDArray[np.int32] | range,
    seq_length: int,
    num_samples: int | None,
    seed: int,
) -> SampleIndex:
    """Return the index that `fill_sample_index` makes, in memory."""
    room = MemoryRoom()
    fill_sample_index(room, lengths, sequences, seq_length, num_samples, seed)
    return sample_index_of(room.arrays)


def sample_index_of(arrays: Arrays) -> SampleIndex:
    """Return the index whose arrays `fill_sample_index` has put into a room."""
    return SampleIndex(arrays["documents"], arrays["starts"], arrays["order"], int(arrays["num_epochs"][0]))


def fill_sample_index(
    room: Room,
    lengths: NDArray[np.int32],
    sequences: NDArray[np.int32] | range,
    seq_length: int,
    num_samples: int | None,
    seed: int,
) -> None:
    """Lay out samples of `seq_length` tokens (and one more) over the given sequences.

    In memory are at most the documents, of all epochs (4 bytes each), or the order of samples (4, beyond 2^32
    samples 8 bytes each), which are shuffled; starts are made in blocks.

    Args:
        room: Gets an index of at least `num_samples` samples, or of none where the sequences hold too few
            tokens for one; see `SampleIndex`.
        lengths: Tokens of every sequence of the file.
        sequences: The sequence numbers to use, of a split.
        seq_length: Input tokens of a sample.
        num_samples: Samples wanted at least; None for one pass.
        seed: Seed of the shuffles, which one generator makes in order: documents, then samples.

    Source: Megatron-LM's documented GPTDataset behaviour; `tests/test_gpt_index.py` has it in plain Python.
    """
    tokens_per_epoch = count_tokens(lengths, sequences)
    num_epochs = _num_epochs(tokens_per_epoch, seq_length, num_samples)
    final = _samples_before_separate_epoch(tokens_per_epoch, seq_length, num_samples, num_epochs)
    generator = np.random.RandomState(seed)
    total = max(0, (num_epochs * tokens_per_epoch - 1) // seq_length)
    room.lay_out({
        "documents": (np.int32, (len(sequences) * num_epochs,)),
        "starts": (np.int64, (total + 1, 2)),
        "order": (_order_dtype(total), (total,)),
        "num_epochs": (np.int64, (1,)),
    })  # fmt: skip
    room.put("num_epochs", 0, np.array([num_epochs]))
    documents = _shuffled_documents(sequences, num_epochs, final is not None, generator)
    room.put("documents", 0, documents)
    _put_starts(room, lengths, documents, seq_length, total)
    del documents
    room.put("order", 0, _shuffled_samples(total if final is None else final, total, generator))


def count_tokens(lengths: NDArray[np.int32], sequences: NDArray[np.int32] | range) -> int:
    """Return how many tokens the sequences hold together."""
    own_lengths = (
        lengths[sequences.start : sequences.stop] if isinstance(sequences, range) else lengths[sequences]
    )
    return int(own_lengths.sum(dtype=np.int64))


def _num_epochs(tokens_per_epoch: int, seq_length: int, num_samples: int | None) -> int:
    if num_samples is None or tokens_per_epoch == 0:
        return 1
    needed = num_samples * seq_length + 1
    return max(1, -(-needed // tokens_per_epoch))


def _samples_before_separate_epoch(
    tokens_per_epoch: int, seq_length: int, num_samples: int | None, num_epochs: int
) -> int | None:
    """Return the samples before the last epoch when that one is shuffled apart, else None."""
    if num_samples is None or num_epochs == 1:
        return None
    before = ((num_epochs - 1) * tokens_per_epoch - 1) // seq_length
    per_epoch = (tokens_per_epoch - 1) // seq_length
    from_last = num_samples - before
    return before if from_last < int(FINAL_EPOCH_THRESHOLD * per_epoch) else None


def _shuffled_documents(
    sequences: NDArray[np.int32] | range,
    num_epochs: int,
    separate_last: bool,
    generator: np.random.RandomState,
) -> NDArray[np.int32]:
    count = len(sequences)
    documents = np.empty(count * num_epochs, np.int32)
    for first in range(0, count, BLOCK_DOCUMENTS):
        part = slice(first, min(first + BLOCK_DOCUMENTS, count))
        documents[part] = sequences[part]
    for epoch in range(1, num_epochs):
        documents[epoch * count : (epoch + 1) * count] = documents[:count]
    border = count * (num_epochs - 1 if separate_last else num_epochs)
    generator.shuffle(documents[:border])
    if separate_last:
        generator.shuffle(documents[border:])
    return documents


def _put_starts(
    room: Room, lengths: NDArray[np.int32], documents: NDArray[np.int32], seq_length: int, total: int
) -> None:
    room.put("starts", 0, np.zeros((1, 2), np.int64))
    base, done = 0, 1
    for first in range(0, len(documents), BLOCK_DOCUMENTS):
        block = documents[first : first + BLOCK_DOCUMENTS]
        ends = np.cumsum(lengths[block], dtype=np.int64)
        ends += base
        upto = min(total + 1, -(-int(ends[-1]) // seq_length))  # samples that start before the block's end
        for start in range(done, upto, BLOCK_SAMPLES):
            tokens = np.arange(start, min(start + BLOCK_SAMPLES, upto), dtype=np.int64) * seq_length
            indices = np.searchsorted(ends, tokens, side="right")
            begins = np.where(indices > 0, ends[indices - 1], base)
            room.put("starts", start, np.stack([indices + first, tokens - begins], axis=1))
        done = max(done, upto)
        base = int(ends[-1])


def _order_dtype(total: int) -> type[np.integer]:
    return np.uint32 if total < np.iinfo(np.uint32).max - 1 else np.int64


def _shuffled_samples(first: int, total: int, generator: np.random.RandomState) -> np.ndarray:
    order = np.arange(total, dtype=_order_dtype(total))
    generator.shuffle(order[:first])
    generator.shuffle(order[first:])
    return order
