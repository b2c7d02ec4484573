"""Cached decoding against transformers' own, and rows that do not disturb each other."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from qwen3_model.network.cache import KVCache
from qwen3_model.network.model import CachedQwen3

ATOL_LOGITS = 1e-4  # float32 through two layers
CAPACITY = 24


def ints(array):
    return Tensor(np.ascontiguousarray(array, np.int32))


@pytest.fixture(scope="module", params=["tied", "yarn"])
def found(request, golden):
    return golden(request.param)


@pytest.fixture(scope="module")
def step(found, make_model):
    """Return a compiled step of two rows; each test starts from whatever another left in the cache."""
    model = make_model("yarn" if found.config.rope_scaling else "tied")
    return ms.jit(CachedQwen3(model, KVCache(found.config, 2, CAPACITY)).construct)


def prefill(step, prompts_BL, lengths_B, first=0):
    positions_BL = np.tile(first + np.arange(prompts_BL.shape[1]), (len(prompts_BL), 1))
    return step(ints(prompts_BL), ints(positions_BL), ints(lengths_B - 1)).asnumpy()


def test_greedy_decoding_of_ragged_rows_is_that_of_transformers(found, step, assert_close):
    lengths_B, wanted = found.tensors["cached.lengths"], found.tensors["cached.logits"]
    logits_BV = prefill(step, found.tensors["cached.prompts"], lengths_B)
    for turn in range(wanted.shape[1]):
        assert_close(logits_BV, wanted[:, turn], atol=ATOL_LOGITS, what=f"token {turn}")
        tokens_B = logits_BV.argmax(-1)
        np.testing.assert_array_equal(tokens_B, found.tensors["cached.tokens"][:, turn])
        logits_BV = step(ints(tokens_B[:, None]), ints(lengths_B[:, None] + turn), ints([0, 0])).asnumpy()


def test_what_an_earlier_text_left_behind_is_never_seen(found, step):
    rng = np.random.default_rng(1)
    clean = prefill(step, found.tensors["cached.prompts"], found.tensors["cached.lengths"])
    for first in range(0, CAPACITY, 8):
        prefill(step, rng.integers(0, found.config.vocab_size, (2, 8)), np.array([8, 8]), first)
    again = prefill(step, found.tensors["cached.prompts"], found.tensors["cached.lengths"])
    np.testing.assert_array_equal(again, clean)


def test_a_row_does_not_depend_on_its_neighbour(found, step):
    prompts_BL, lengths_B = found.tensors["cached.prompts"].copy(), found.tensors["cached.lengths"]
    before = prefill(step, prompts_BL, lengths_B)[0]
    prompts_BL[1] = prompts_BL[1][::-1]
    after = prefill(step, prompts_BL, lengths_B)
    np.testing.assert_array_equal(after[0], before)


def test_a_prompt_in_two_parts_is_the_prompt_in_one(found, step, assert_close):
    prompts_BL = np.concatenate([found.tensors["cached.prompts"], found.tensors["cached.prompts"][::-1]], 1)
    whole = prefill(step, prompts_BL, np.array([16, 16]))
    prefill(step, prompts_BL[:, :8], np.array([8, 8]))
    rest = prefill(step, prompts_BL[:, 8:], np.array([8, 8]), 8)
    assert_close(rest, whole, atol=1e-5)


def test_a_cache_leaves_the_models_names_alone(found, make_model):
    model = make_model("yarn" if found.config.rope_scaling else "tied")
    CachedQwen3(model, KVCache(found.config, 1, 4))
    assert list(model.parameters_dict()) == list(found.config.weight_shapes())
