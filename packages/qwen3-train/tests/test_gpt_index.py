"""The sample index against a plain-Python walk over the tokens that follows the format's description."""

import numpy as np
import pytest

from qwen3_train.data import gpt_index
from qwen3_train.data.gpt_index import build_sample_index


def reference_index(lengths, sequences, seq_length, num_samples, seed):
    """Walk token by token; slow, and independent of the code under test."""
    rng = np.random.RandomState(seed)
    per_epoch = sum(int(lengths[s]) for s in sequences)
    epochs, tokens = 1, per_epoch
    if num_samples is not None:
        while tokens < num_samples * seq_length + 1:
            epochs, tokens = epochs + 1, tokens + per_epoch
    separate, before = False, None
    if epochs > 1:
        before = ((epochs - 1) * per_epoch - 1) // seq_length
        separate = num_samples - before < int(0.80 * ((per_epoch - 1) // seq_length))

    def shuffled(times):
        laid = np.array([s for _ in range(times) for s in sequences], dtype=np.int32)
        rng.shuffle(laid)
        return laid.tolist()

    documents = shuffled(epochs - 1) + shuffled(1) if separate else shuffled(epochs)
    total = (epochs * per_epoch - 1) // seq_length
    starts, place, offset = [(0, 0)], 0, 0
    for _ in range(total):
        left = seq_length + 1
        while left:
            here = int(lengths[documents[place]]) - offset
            left -= here
            if left <= 0:
                offset += left + here - 1
                left = 0
            else:
                place, offset = place + 1, 0
        starts.append((place, offset))

    def order(begin, end):
        part = np.arange(begin, end, dtype=np.uint32)
        rng.shuffle(part)
        return part.tolist()

    split_at = before if separate else total
    return (
        documents,
        starts,
        order(0, split_at) + (order(split_at, total) if split_at < total else []),
        epochs,
    )


CASES = [
    # lengths, sequences, seq_length, num_samples
    ([7, 3, 12, 1, 1, 30, 2], range(7), 4, None),
    ([7, 3, 12, 1, 1, 30, 2], range(7), 4, 13),
    ([7, 3, 12, 1, 1, 30, 2], range(7), 4, 15),  # little of the second epoch: shuffled apart
    ([7, 3, 12, 1, 1, 30, 2], range(7), 4, 27),  # much of it: shuffled together
    ([7, 3, 12, 1, 1, 30, 2], range(7), 4, 200),
    ([0, 5, 0, 0, 9, 6, 0], range(7), 5, 11),  # empty sequences
    ([5, 9, 8, 4, 6], range(1, 4), 3, 20),  # a middle part of the file
    ([4], range(1), 3, None),
    ([4], range(1), 3, 9),
    ([100, 1, 1], range(3), 7, 40),  # documents longer than samples
]


@pytest.mark.parametrize("seed", [1234, 7])
@pytest.mark.parametrize(("lengths", "sequences", "seq_length", "num_samples"), CASES)
def test_index_equals_a_walk_over_the_tokens(lengths, sequences, seq_length, num_samples, seed):
    lengths, sequences = np.array(lengths, dtype=np.int32), np.array(sequences, dtype=np.int32)
    documents, starts, order, epochs = reference_index(lengths, sequences, seq_length, num_samples, seed)
    index = build_sample_index(lengths, sequences, seq_length, num_samples, seed)
    assert index.num_epochs == epochs
    assert index.documents.tolist() == documents
    assert [tuple(row) for row in index.starts.tolist()] == starts
    assert index.order.tolist() == order
    assert num_samples is None or len(index) >= num_samples


def test_index_does_not_depend_on_the_block_size(monkeypatch):
    lengths = np.random.default_rng(0).integers(0, 40, 500, dtype=np.int32)
    sequences = np.arange(500, dtype=np.int32)
    whole = build_sample_index(lengths, sequences, 16, 900, 3)
    monkeypatch.setattr(gpt_index, "BLOCK_DOCUMENTS", 7)
    blocks = build_sample_index(lengths, sequences, 16, 900, 3)
    np.testing.assert_array_equal(whole.starts, blocks.starts)
    assert whole.starts[-1, 0] > 500  # more than one epoch was laid out


def test_random_files_equal_the_walk():
    rng = np.random.default_rng(5)
    for _ in range(30):
        lengths = rng.integers(0, 30, rng.integers(2, 25), dtype=np.int32)
        lengths[0] = 25
        sequences = np.arange(len(lengths), dtype=np.int32)
        seq_length, num_samples = int(rng.integers(2, 12)), int(rng.integers(1, 120))
        documents, starts, order, _ = reference_index(lengths, sequences, seq_length, num_samples, 42)
        index = build_sample_index(lengths, sequences, seq_length, num_samples, 42)
        assert index.documents.tolist() == documents
        assert [tuple(row) for row in index.starts.tolist()] == starts
        assert index.order.tolist() == order


def test_data_shorter_than_a_sample_give_an_empty_index():
    index = build_sample_index(np.array([3], np.int32), np.array([0], np.int32), 3, None, 0)
    assert len(index) == 0
