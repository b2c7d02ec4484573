"""Which tokens make up which sample: the three index arrays of Megatron's GPTDataset, number for number.

The documents of all epochs are shuffled and laid end to end; sample k covers `seq_length + 1` tokens from
token `k * seq_length` on, so neighbours share one token, the last label of one being the first input of the
next.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FINAL_EPOCH_THRESHOLD = 0.80
"""A last epoch of which less than this part is needed is shuffled apart from the others."""
BLOCK_DOCUMENTS = 1_000_000
"""Documents laid out at once; bounds the memory of temporaries to some tens of megabytes."""


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """The order of documents and samples of one dataset."""

    documents: NDArray[np.int32]
    """Sequence numbers in the order in which their tokens are read, every epoch's."""
    starts: NDArray[np.int64]
    """[n + 1, 2]: for each sample and for the end, a place in `documents` and an offset in that sequence."""
    order: NDArray[Any]
    """Sample numbers in the order in which they are served, uint32 or int64."""
    num_epochs: int
    """Passes over the documents."""

    def __len__(self) -> int:
        return len(self.order)


def build_sample_index(
    lengths: NDArray[np.int32],
    sequences: NDArray[np.int32],
    seq_length: int,
    num_samples: int | None,
    seed: int,
) -> SampleIndex:
    """Lay out samples of `seq_length` tokens (and one more) over the given sequences.

    Args:
        lengths: Tokens of every sequence of the file.
        sequences: The sequence numbers to use, of a split.
        seq_length: Input tokens of a sample.
        num_samples: Samples wanted at least; None for one pass.
        seed: Of the shuffles, which one generator makes in order: documents, then samples.

    Returns:
        An index of at least `num_samples` samples, or none where the sequences hold too few tokens for one.
    Source: Megatron-LM's documented GPTDataset behaviour; `tests/test_gpt_index.py` has it in plain Python.
    """
    tokens_per_epoch = int(lengths[sequences].sum(dtype=np.int64))
    num_epochs = _num_epochs(tokens_per_epoch, seq_length, num_samples)
    final = _samples_before_separate_epoch(tokens_per_epoch, seq_length, num_samples, num_epochs)
    generator = np.random.RandomState(seed)
    documents = _shuffled_documents(sequences, num_epochs, final is not None, generator)
    total = max(0, (num_epochs * tokens_per_epoch - 1) // seq_length)
    starts = _sample_starts(lengths, documents, seq_length, total)
    order = _shuffled_samples(total if final is None else final, total, generator)
    return SampleIndex(documents, starts, order, num_epochs)


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
    sequences: NDArray[np.int32], num_epochs: int, separate_last: bool, generator: np.random.RandomState
) -> NDArray[np.int32]:
    head = np.tile(sequences, num_epochs - 1 if separate_last else num_epochs)
    generator.shuffle(head)
    if not separate_last:
        return head
    tail = sequences.copy()
    generator.shuffle(tail)
    return np.concatenate([head, tail])


def _sample_starts(
    lengths: NDArray[np.int32], documents: NDArray[np.int32], seq_length: int, total: int
) -> NDArray[np.int64]:
    starts = np.zeros((total + 1, 2), dtype=np.int64)
    base, done = 0, 1
    for first in range(0, len(documents), BLOCK_DOCUMENTS):
        block = documents[first : first + BLOCK_DOCUMENTS]
        ends = np.cumsum(lengths[block], dtype=np.int64)
        ends += base
        upto = min(total + 1, -(-int(ends[-1]) // seq_length))  # samples that start before the block's end
        if upto > done:
            tokens = np.arange(done, upto, dtype=np.int64) * seq_length
            places = np.searchsorted(ends, tokens, side="right")
            begins = np.where(places > 0, ends[places - 1], base)
            starts[done:upto, 0] = places + first
            starts[done:upto, 1] = tokens - begins
            done = upto
        base = int(ends[-1])
    return starts


def _shuffled_samples(first: int, total: int, generator: np.random.RandomState) -> NDArray[Any]:
    dtype = np.uint32 if total < np.iinfo(np.uint32).max - 1 else np.int64
    head = np.arange(first, dtype=dtype)
    generator.shuffle(head)
    if first == total:
        return head
    tail = np.arange(first, total, dtype=dtype)
    generator.shuffle(tail)
    return np.concatenate([head, tail])
