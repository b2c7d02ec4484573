"""Cached decoding on MindSpore against transformers, itself in other batches, and no cache."""

from functools import partial

import mindspore as ms
import numpy as np
import pytest

from qwen3_infer.device import Device
from qwen3_infer.engine import PIECES, MindSporeEngine, choose_kernels, cut, load_model
from qwen3_infer.generator import generate
from qwen3_infer.native_kernels import NativeKernels
from qwen3_model.kernels import make_kernels

KERNELS = ("portable", "native")
NUM_ROWS = 3
CONTEXT = 200 + 256
ATOL_F32 = 2e-4  # logits of up to 20 after sums in another order


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=KERNELS)
def model(golden, cache_dir, request):
    device = Device(target="CPU", kernels=request.param, num_threads=2, cache_dir=cache_dir)
    return load_model(golden.dir, choose_kernels(device, pytest.fail), quiet=True)


@pytest.fixture(scope="module")
def engine(model):
    return MindSporeEngine(model, NUM_ROWS, CONTEXT)


def test_an_engine_can_be_made_after_mindspore_has_computed(cache_dir):
    assert (ms.Tensor([1.0]) + 1.0).asnumpy() == 2.0
    device = Device(target="CPU", kernels="portable", num_threads=2, cache_dir=cache_dir)
    choose_kernels(device, pytest.fail)


def test_a_prompt_is_cut_into_the_two_lengths_alone():
    assert list(cut(1)) == [(0, 32)]
    assert list(cut(32)) == [(0, 32)]
    assert list(cut(128)) == [(0, 128)]
    assert list(cut(300)) == [(0, 128), (128, 128), (256, 32), (288, 32)]
    assert {length for number in range(1, 400) for _, length in cut(number)} == set(PIECES)


def test_greedy_tokens_of_a_ragged_batch_are_those_of_transformers(golden, engine, make_request):
    requests = [
        make_request(case["prompt"], index=index, new_tokens=len(case["greedy"]))
        for index, case in enumerate(golden.cases)
    ]
    found = {done.request.index: done for done in generate(requests, engine, NoText())}
    assert len(found) == 7
    for index, case in enumerate(golden.cases):
        assert list(found[index].ids) == case["greedy"], f"prompt of {len(case['prompt'])} tokens"
        assert found[index].finish_reason == "length"


def test_tokens_under_a_repetition_penalty_are_those_of_transformers(golden, engine, make_request):
    case = golden.cases[3]
    request = make_request(case["prompt"], new_tokens=256, temperature=0.0, repetition_penalty=1.2)
    (done,) = generate([request], engine, NoText())
    assert list(done.ids) == case["repetition_penalty_1.2"]


def test_logits_of_a_row_do_not_depend_on_its_neighbours(golden, engine):
    ids = golden.cases[4]["prompt"]
    alone = engine.prefill(1, ids)
    others = [engine.prefill(row, golden.cases[row]["prompt"]) for row in (0, 2)]
    again = engine.prefill(1, ids)
    np.testing.assert_array_equal(alone, again)
    assert not np.array_equal(others[0], others[1])
    tokens = np.array([5, 6, 7], np.int32)
    positions = np.array([1, len(ids), 17], np.int32)
    among = engine.decode(tokens, positions)[1]
    elsewhere = engine.decode(np.array([9, 6, 3], np.int32), np.array([0, len(ids), 0], np.int32))[1]
    np.testing.assert_array_equal(among, elsewhere)


def test_cached_logits_are_those_of_a_whole_forward_pass(golden, engine):
    ids = golden.cases[5]["prompt"] + golden.cases[5]["greedy"][:3]
    uncached = load_model(golden.dir, make_kernels("CPU"), quiet=True)
    whole = ms.jit(uncached.construct)(ms.Tensor(np.array([ids], np.int32))).asnumpy()[0]
    prompt = ids[:-3]
    cached = [engine.prefill(2, prompt)]
    for place in range(len(prompt), len(ids)):
        tokens, positions = np.zeros(NUM_ROWS, np.int32), np.zeros(NUM_ROWS, np.int32)
        tokens[2], positions[2] = ids[place], place
        cached.append(engine.decode(tokens, positions)[2])
    np.testing.assert_allclose(np.stack(cached), whole[len(prompt) - 1 :], atol=ATOL_F32, rtol=0)


def test_logits_are_the_same_decoded_read_at_once_and_in_any_batch(golden, model, engine):
    # To the last bit with native kernels; MindSpore's operators sum in an order that depends on the shape.
    compare = partial(np.testing.assert_allclose, rtol=0, atol=ATOL_F32)
    if isinstance(model.kernels, NativeKernels):
        compare = np.testing.assert_array_equal
    ids = golden.cases[4]["prompt"]
    at_once = engine.prefill(0, ids)
    engine.prefill(0, ids[:33])
    for place in range(33, len(ids)):
        tokens, positions = np.zeros(NUM_ROWS, np.int32), np.zeros(NUM_ROWS, np.int32)
        tokens[0], positions[0] = ids[place], place
        decoded = engine.decode(tokens, positions)[0]
    compare(decoded, at_once)
    alone = MindSporeEngine(model, 1, 128)
    compare(alone.prefill(0, ids), at_once)
    compare(
        alone.decode(np.array([7], np.int32), np.array([len(ids)], np.int32))[0],
        engine.decode(np.array([7, 1, 2], np.int32), np.array([len(ids), 0, 0], np.int32))[0],
    )


def test_a_conversations_engine_reads_only_what_is_new(golden, model):
    ids = golden.cases[4]["prompt"]
    fresh = MindSporeEngine(model, 1, 128)
    engine = MindSporeEngine(model, 1, 128, reuses_beginnings=True)
    engine.prefill(0, ids[:40])
    engine.decode(np.array([ids[40]], np.int32), np.array([40], np.int32))
    assert engine.num_read == 40
    np.testing.assert_allclose(engine.prefill(0, ids), fresh.prefill(0, ids), rtol=0, atol=ATOL_F32)
    assert engine.num_read == 40 + len(ids) - 41
    other = [*ids[:10], *golden.cases[5]["prompt"][:9]]
    np.testing.assert_allclose(engine.prefill(0, other), fresh.prefill(0, other), rtol=0, atol=ATOL_F32)
    assert engine.num_read == 40 + len(ids) - 41 + 9


class NoText:
    """Stands for a tokenizer where only ids matter."""

    def decode(self, ids):
        return ""
