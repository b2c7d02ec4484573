import dataclasses
import math

import numpy as np
import pytest

from qwen3_model.config import SIZES
from qwen3_model.network.rope import attention_factor, rope_frequencies
from qwen3_model.rope_scaling import YarnScaling

RTOL_FREQUENCY = 3e-7  # two float32 roundings: torch's power and numpy's differ in the last bit
ATOL_TURN = 2e-6  # at small positions; there the angle is exact to float32
# Near 131071 radians float32 numbers are 0.008 apart, so one bit of a frequency moves cos by that.
ATOL_FAR_TURN = 8e-3


@pytest.mark.parametrize("variant", ["rope_default", "rope_yarn", "tied", "yarn"])
def test_frequencies_are_those_of_transformers(golden, assert_close, variant):
    found = golden(variant)
    theirs = found.tensors.get("frequencies", found.tensors.get("pieces.rope.frequencies"))
    ours, _ = rope_frequencies(found.config)
    assert ours.dtype == np.float32
    assert_close(ours, theirs, atol=0, rtol=RTOL_FREQUENCY, what=variant)


@pytest.mark.parametrize("variant", ["rope_default", "rope_yarn"])
def test_cos_and_sin_are_those_of_transformers_up_to_the_longest_context(golden, assert_close, variant):
    found = golden(variant)
    positions = found.tensors["positions"][0]
    near = positions < 4
    cos_PH, sin_PH = rope_table(found.config, int(positions.max()) + 1)
    for ours_PH, name in ((cos_PH, "cos"), (sin_PH, "sin")):
        theirs_PH = found.tensors[name][0, :, : found.config.head_dim // 2]
        assert_close(ours_PH[positions[near]], theirs_PH[near], atol=ATOL_TURN, what=name)
        assert_close(ours_PH[positions], theirs_PH, atol=ATOL_FAR_TURN, what=name)


def rope_table(config, num_positions):
    frequencies_H, scale = rope_frequencies(config)
    angles_PH = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies_H
    return np.cos(angles_PH) * np.float32(scale), np.sin(angles_PH) * np.float32(scale)


def test_the_first_pair_turns_by_one_radian_per_token():
    cos_PH, sin_PH = rope_table(SIZES["0.6B"], 3)
    np.testing.assert_allclose(cos_PH[:, 0], [1, math.cos(1), math.cos(2)], atol=1e-7)
    np.testing.assert_allclose(sin_PH[:, 0], [0, math.sin(1), math.sin(2)], atol=1e-7)


def test_yarn_keeps_fast_pairs_and_divides_slow_ones_by_the_factor():
    scaling = YarnScaling(factor=4.0, original_max_position_embeddings=32768)
    plain, _ = rope_frequencies(SIZES["8B"])
    stretched, scale = rope_frequencies(dataclasses.replace(SIZES["8B"], rope_scaling=scaling))
    assert stretched[0] == plain[0]
    assert stretched[-1] == pytest.approx(plain[-1] / 4, rel=1e-6)
    assert scale == pytest.approx(0.1 * math.log(4) + 1)


def test_a_stated_attention_factor_wins():
    assert (
        attention_factor(YarnScaling(factor=4.0, original_max_position_embeddings=8, attention_factor=1.5))
        == 1.5
    )
