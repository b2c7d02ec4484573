import dataclasses

import numpy as np

from qwen3_model.checkpoints import fresh_weights
from qwen3_model.checkpoints.fresh_weights import fresh_blocks, fresh_weight, init_weights
from qwen3_model.config import SIZES

SMALL = dataclasses.replace(
    SIZES["0.6B"], vocab_size=2500, hidden_size=64, num_layers=2, intermediate_size=96
)
NAME = "model.embed_tokens.weight"


def test_names_shapes_and_order_are_the_models():
    found = [(name, value.shape, value.dtype) for name, value in init_weights(SMALL, 0)]
    assert found == [(name, shape, np.float32) for name, shape in SMALL.weight_shapes().items()]


def test_matrices_are_normal_with_the_configs_deviation_and_norms_are_ones():
    values = fresh_weight(SMALL, NAME, 0)
    # 160,000 samples: the deviation's own deviation is 0.0018 of it.
    assert abs(values.std() / SMALL.initializer_range - 1) < 0.01
    assert abs(values.mean()) < 0.01 * SMALL.initializer_range
    np.testing.assert_array_equal(fresh_weight(SMALL, "model.norm.weight", 0), np.ones(64, np.float32))


def test_the_seed_and_the_name_decide_and_nothing_else():
    np.testing.assert_array_equal(fresh_weight(SMALL, NAME, 5), fresh_weight(SMALL, NAME, 5))
    assert not np.array_equal(fresh_weight(SMALL, NAME, 5), fresh_weight(SMALL, NAME, 6))
    first, second = (fresh_weight(SMALL, f"model.layers.{i}.mlp.up_proj.weight", 5) for i in (0, 1))
    assert not np.array_equal(first, second)
    fewer_layers = dataclasses.replace(SMALL, num_layers=1)
    np.testing.assert_array_equal(fresh_weight(fewer_layers, NAME, 5), fresh_weight(SMALL, NAME, 5))


def test_blocks_are_the_weight_in_order_and_differ():
    blocks = list(fresh_blocks(SMALL, NAME, 3))
    assert [len(block) for block in blocks] == [1024, 1024, 452]
    assert not np.array_equal(blocks[0], blocks[1])


def test_a_part_is_that_of_the_whole_and_no_other_block_is_made(monkeypatch):
    whole, made, block = fresh_weight(SMALL, NAME, 3), [], fresh_weights._block

    def noting(config, name, seed, number):
        made.append(number)
        return block(config, name, seed, number)

    monkeypatch.setattr(fresh_weights, "_block", noting)
    for rows, wanted in ((slice(0, 625), [0]), (slice(1000, 1030), [0, 1]), (slice(1875, 2500), [1, 2])):
        for columns in (slice(0, 64), slice(16, 32)):
            made.clear()
            np.testing.assert_array_equal(fresh_weight(SMALL, NAME, 3, (rows, columns)), whole[rows, columns])
            assert sorted(made) == wanted
    norm = fresh_weight(SMALL, "model.norm.weight", 3, (slice(8, 24),))
    np.testing.assert_array_equal(norm, np.ones(16, np.float32))


def test_the_numbers_stay_the_same_from_release_to_release():
    np.testing.assert_allclose(fresh_weight(SMALL, NAME, 0)[0, :3], PINNED, rtol=1e-6)


PINNED = [-0.02373554, 0.004641652, -0.004939829]
