"""The parts of a sequence that ranks share, and which keys the queries of a part look at."""

import itertools

import numpy as np
import pytest

from qwen3_train.data.batches import Batch
from qwen3_train.data.context_part import ContextPart
from qwen3_train.parallel.context import document_lengths

LENGTH = 16


def batch():
    ids_BL = np.arange(2 * LENGTH, dtype=np.int32).reshape(2, LENGTH)
    segments_BL = np.repeat([[0, 1, 2, 3], [0, 0, 1, 2]], 4, axis=1).astype(np.int32)
    return Batch(ids_BL, ids_BL + 1, np.ones((2, LENGTH), np.float32), None, segments_BL)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_have_every_token_once_at_its_position(size):
    parts = [ContextPart(index, size).part_of(batch()) for index in range(size)]
    tokens = np.concatenate([part.input_ids_BL.reshape(-1) for part in parts])
    np.testing.assert_array_equal(np.sort(tokens), np.arange(2 * LENGTH))
    for part in parts[: size if size > 1 else 0]:
        np.testing.assert_array_equal(part.position_ids_BL, part.input_ids_BL % LENGTH)
        np.testing.assert_array_equal(part.labels_BL, part.input_ids_BL + 1)
        # Rows of one sample after those of the other, for each chunk.
        assert (part.input_ids_BL[:, 0] // LENGTH).tolist() == [0, 1, 0, 1]


def test_all_parts_look_at_as_many_keys():
    keys = [sum(chunk + 1 for chunk in ContextPart(index, 4).chunks) for index in range(4)]
    assert len(set(keys)) == 1


def test_documents_of_a_chunk_have_their_keys_up_to_its_end():
    rng = np.random.default_rng(0)
    ids_BL = np.cumsum(rng.random((3, LENGTH)) < 0.3, axis=1)
    for chunk in range(4):
        query_ends, key_ends = document_lengths(ids_BL, chunk, 4)
        visible = np.zeros((3 * 4, 3 * 4 * (chunk + 1)), bool)
        starts = [(0, 0), *zip(query_ends, key_ends, strict=True)]
        for (first, first_key), (end, end_key) in itertools.pairwise(starts):
            for query in range(first, end):
                # The causal order from the end: the last query of a document is at its last key.
                visible[query, first_key : end_key - (end - 1 - query)] = True
        assert (query_ends[-1], key_ends[-1]) == visible.shape
        places = np.arange(4 * chunk, 4 * (chunk + 1))
        for row in range(3):
            wanted = ids_BL[row, places, None] == ids_BL[row, None, : 4 * (chunk + 1)]
            wanted &= np.arange(4 * (chunk + 1)) <= places[:, None]
            keys = slice(row * 4 * (chunk + 1), (row + 1) * 4 * (chunk + 1))
            np.testing.assert_array_equal(visible[4 * row : 4 * row + 4, keys], wanted)
        assert visible.sum() == sum(
            visible[4 * r : 4 * r + 4, r * 4 * (chunk + 1) : (r + 1) * 4 * (chunk + 1)].sum()
            for r in range(3)
        )
