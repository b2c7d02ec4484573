"""Cached decoding on MindSpore against transformers, itself in other batches, and no cache."""

from functools import partial

import mindspore as ms
import numpy as np
import pytest

from qwen3_infer.device import Device
from qwen3_infer.engine.engine import choose_kernels
from qwen3_infer.engine.loading import build_model
from qwen3_infer.folder.weights import open_hf_weights
from qwen3_infer.native.model import NativeModel
from qwen3_infer.processes.local import open_local
from qwen3_infer.schedule.generator import generate, run
from qwen3_infer.schedule.scheduler import Scheduler
from qwen3_infer.steps.pieces import ALIGN, PIECES, cut
from qwen3_model.network.kernels.choice import make_kernels

KERNELS = ("portable", "native")
NUM_ROWS = 3
CONTEXT = 200 + 256
ATOL_F32 = 2e-4  # logits of up to 20 after sums in another order


@pytest.fixture(scope="module", params=KERNELS)
def model(golden, cache_dir, request):
    device = Device(target="CPU", kernels=request.param, num_threads=2, cache_dir=cache_dir)
    return open_local(golden.dir, device, quiet=True, note=pytest.fail)


@pytest.fixture(scope="module")
def engine(model):
    return model.engine(NUM_ROWS, CONTEXT)


@pytest.fixture(scope="module")
def alone(model):
    """Return an engine for one request at a time."""
    return model.engine(1, 256)


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


@pytest.mark.parametrize("num_tokens", [32, 64, 96, 128])
def test_a_small_cache_warms_up_and_holds_what_fits(golden, cache_dir, make_request, num_tokens):
    device = Device(target="CPU", kernels="native", num_threads=2, cache_dir=cache_dir)
    engine = open_local(golden.dir, device, quiet=True, note=pytest.fail).engine(2, num_tokens, num_tokens)
    engine.warm_up()
    case = min(golden.cases, key=lambda case: len(case["prompt"]))
    wanted = make_request(case["prompt"], new_tokens=4)
    (found,) = generate([wanted], engine, NoText())
    assert list(found.ids) == case["greedy"][:4]
    with pytest.raises(RuntimeError):
        engine.decode(*np.array([[-ALIGN], [0], [0]], np.int32))
    with pytest.raises(RuntimeError):
        engine.decode(*np.array([[0], [0], [-1]], np.int32))


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


def prefill(engine, row, ids):
    """Read a prompt into the room of the row with this number; return the logits after it."""
    for start, length in cut(len(ids)):
        logits = engine.read(row * room(engine), ids[start : start + length], start, length)
    return logits


def decode(engine, tokens_by_row, positions):
    """Add a token to some rows, at their positions; return the logits of each."""
    starts = np.array([row * room(engine) for row in tokens_by_row], np.int32)
    tokens, places = (np.array([*values], np.int32) for values in (tokens_by_row.values(), positions))
    return engine.decode(starts, tokens, places)


def room(engine):
    return engine.num_tokens // engine.num_rows


def test_logits_of_a_row_do_not_depend_on_its_neighbours(golden, engine):
    ids = golden.cases[4]["prompt"]
    alone = prefill(engine, 1, ids)
    others = [prefill(engine, row, golden.cases[row]["prompt"]) for row in (0, 2)]
    again = prefill(engine, 1, ids)
    np.testing.assert_array_equal(alone, again)
    assert not np.array_equal(others[0], others[1])
    among = decode(engine, {0: 5, 1: 6, 2: 7}, [1, len(ids), 17])[1]
    elsewhere = decode(engine, {0: 9, 1: 6, 2: 3}, [0, len(ids), 0])[1]
    np.testing.assert_array_equal(among, elsewhere)
    np.testing.assert_array_equal(among, decode(engine, {1: 6}, [len(ids)])[0])


@pytest.fixture(scope="module")
def whole_pass(golden):
    """Return ids and the logits after each, without a cache."""
    ids = golden.cases[5]["prompt"] + golden.cases[5]["greedy"][:3]
    uncached = build_model(golden.config, open_hf_weights(golden.dir), None, make_kernels("CPU"))
    return ids, ms.jit(uncached.construct)(ms.Tensor(np.array([ids], np.int32))).asnumpy()[0]


def test_cached_logits_are_those_of_a_whole_forward_pass(whole_pass, engine):
    ids, whole = whole_pass
    prompt = ids[:-3]
    cached = [prefill(engine, 2, prompt)]
    for place in range(len(prompt), len(ids)):
        cached.append(decode(engine, {2: ids[place]}, [place])[0])
    np.testing.assert_allclose(np.stack(cached), whole[len(prompt) - 1 :], atol=ATOL_F32, rtol=0)


def test_logits_are_the_same_decoded_read_at_once_and_in_any_batch(golden, model, engine, alone):
    # To the last bit with native kernels; MindSpore's operators sum in an order that depends on the shape.
    compare = partial(np.testing.assert_allclose, rtol=0, atol=ATOL_F32)
    if isinstance(model, NativeModel):
        compare = np.testing.assert_array_equal
    ids = golden.cases[4]["prompt"]
    at_once = prefill(engine, 0, ids)
    prefill(engine, 0, ids[:33])
    for place in range(33, len(ids)):
        decoded = decode(engine, {0: ids[place]}, [place])[0]
    compare(decoded, at_once)
    compare(prefill(alone, 0, ids), at_once)
    compare(decode(alone, {0: 7}, [len(ids)])[0], decode(engine, {0: 7, 1: 1, 2: 2}, [len(ids), 0, 0])[0])


def test_a_common_beginning_is_read_once_and_gives_the_same_tokens(golden, model, alone, make_request):
    if not isinstance(model, NativeModel):
        pytest.skip("MindSpore's own operators give other bits when a prompt is cut elsewhere")
    engine = Reads(model.engine(3, CONTEXT))
    shared = golden.cases[5]["prompt"][:100]
    prompts = [[*shared, *golden.cases[i]["prompt"][:20]] for i in (2, 3, 4)]
    wanted = []
    for ids in prompts:
        (done,) = generate([make_request(ids, new_tokens=20)], alone, NoText())
        assert done.num_shared == 0
        wanted.append(done.ids)
    requests = [make_request(ids, index=i, new_tokens=20) for i, ids in enumerate(prompts)]
    done = sorted(generate(requests, engine, NoText()), key=lambda each: each.request.index)
    assert [each.ids for each in done] == wanted
    assert [each.num_shared for each in done] == [0, 96, 96]
    assert engine.num_read == sum(map(len, prompts)) - 2 * 96


def test_a_conversation_reads_only_what_is_new(golden, model, alone, make_request):
    ids = golden.cases[5]["prompt"]
    engine = Reads(model.chat_engine(256))
    scheduler = Scheduler(engine, NoText())
    (first,) = run([make_request(ids[:90], new_tokens=20)], scheduler)
    longer = [*ids[:90], *first.ids, *ids[90:120]]
    assert engine.num_read == 90
    (second,) = run([make_request(longer, new_tokens=20)], scheduler)
    # Pieces begin at multiples of 32; the newest token was not read yet.
    assert second.num_shared == 96
    assert engine.num_read == 90 + len(longer) - 96
    (fresh,) = generate([make_request(longer, new_tokens=20)], alone, NoText())
    assert fresh.num_shared == 0
    assert second.ids == fresh.ids
    other = [*ids[:40], *golden.cases[3]["prompt"]]
    (third,) = run([make_request(other, new_tokens=20)], scheduler)
    (fresh,) = generate([make_request(other, new_tokens=20)], alone, NoText())
    assert fresh.num_shared == 0
    assert third.ids == fresh.ids


class Reads:
    """An engine that counts the tokens of prompts that it reads."""

    def __init__(self, engine):
        self.engine, self.num_read = engine, 0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def read(self, start, ids, position, length):
        self.num_read += len(ids)
        return self.engine.read(start, ids, position, length)


class NoText:
    """Stands for a tokenizer where only ids matter."""

    def decode(self, ids):
        return ""
