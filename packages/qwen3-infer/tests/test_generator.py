"""The loop with an engine that stands for a model: the next token is known, and so is who asked for it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from qwen3_infer.schedule.generator import generate
from qwen3_model.errors import WeightError
from qwen3_model.text.tokenizer import Qwen3Tokenizer

VOCAB = 4096


class Counter:
    """After token t the logits favour t + 1, a little; every call is recorded."""

    unit, shares_beginnings = 64, False
    pieces = (128, 32)

    def __init__(self, num_rows):
        self.num_rows, self.num_tokens = num_rows, num_rows * self.unit
        self.reads, self.decodes = [], []

    def read(self, start, ids, position, length):
        self.reads.append((start // self.unit, tuple(ids)))
        return self._after(ids[-1])

    def decode(self, starts, tokens, positions):
        self.decodes.append(((starts // self.unit).tolist(), tokens.tolist(), positions.tolist()))
        return np.stack([self._after(token) for token in tokens])

    def _after(self, token):
        logits = np.zeros(VOCAB, np.float32)
        logits[(token + 1) % VOCAB] = 3.0
        return logits


@pytest.fixture(scope="module")
def tokenizer(demo_tokenizer_dir):
    return Qwen3Tokenizer.from_dir(demo_tokenizer_dir)


def test_rows_are_filled_again_as_requests_finish(make_request, tokenizer):
    engine = Counter(2)
    requests = [make_request([100 * i], index=i, new_tokens=n) for i, n in enumerate([5, 2, 3, 1], start=1)]
    done = list(generate(requests, engine, tokenizer))
    assert [each.request.index for each in done] == [2, 1, 3, 4]
    assert {each.request.index: each.ids for each in done} == {
        1: (101, 102, 103, 104, 105), 2: (201, 202), 3: (301, 302, 303), 4: (401,),
    }  # fmt: skip
    assert [row for row, _ in engine.reads] == [0, 1, 1, 0]


def test_each_row_moves_at_its_own_position(make_request, tokenizer):
    engine = Counter(2)
    list(
        generate(
            [make_request([7, 8, 9], new_tokens=3), make_request([50], index=1, new_tokens=3)],
            engine,
            tokenizer,
        )
    )
    assert engine.decodes == [([1], [51], [1]), ([1, 0], [52, 10], [2, 3]), ([0], [11], [4])]


def test_a_stop_id_ends_the_completion_and_has_no_text(make_request, tokenizer):
    (done,) = generate([make_request([300], new_tokens=50, stop_ids=[304, 999])], Counter(1), tokenizer)
    assert done.ids == (301, 302, 303, 304)
    assert done.text == tokenizer.decode([301, 302, 303])
    assert done.finish_reason == "stop"


def test_a_stop_string_ends_the_completion_and_is_cut_off(make_request, tokenizer):
    whole = tokenizer.decode(range(301, 312))
    stop = tokenizer.decode([304, 305])
    (done,) = generate([make_request([300], new_tokens=50, stop_strings=[stop])], Counter(1), tokenizer)
    assert done.text == whole[: whole.index(stop)]
    assert done.finish_reason == "stop"
    assert len(done.ids) < 50


def test_length_is_the_reason_otherwise(make_request, tokenizer):
    (done,) = generate([make_request([300], new_tokens=4)], Counter(1), tokenizer)
    assert (len(done.ids), done.finish_reason) == (4, "length")


def test_pieces_of_text_come_per_request_and_join_to_the_completion(make_request, tokenizer):
    pieces = {0: "", 1: ""}

    def collect(request, piece):
        pieces[request.index] += piece

    requests = [make_request([200], new_tokens=20), make_request([900], index=1, new_tokens=30)]
    done = {each.request.index: each.text for each in generate(requests, Counter(2), tokenizer, collect)}
    assert pieces == done


def test_a_requests_draws_depend_on_seed_and_index_alone(make_request, tokenizer):
    def run(indices, num_rows, seed=4):
        requests = [make_request([9], index=i, new_tokens=12, seed=seed, temperature=2.0) for i in indices]
        return {each.request.index: each.ids for each in generate(requests, Counter(num_rows), tokenizer)}

    alone, among = run([2], 1), run([0, 1, 2, 3], 3)
    assert alone[2] == among[2]
    assert among[1] != among[2]
    assert run([2], 1, seed=5) != alone


def test_nan_logits_are_an_error(make_request, tokenizer):
    class Broken(Counter):
        def _after(self, token):
            return np.full(VOCAB, np.nan, np.float32)

    with pytest.raises(WeightError, match="the model computes NaN"):
        list(generate([make_request([1])], Broken(1), tokenizer))


def test_log_probabilities_are_the_models_own(make_request, tokenizer):
    request = make_request([9], new_tokens=3, temperature=0.5, top_k=1)
    request = replace(request, decoding=replace(request.decoding, logprobs=True))
    (done,) = generate([request], Counter(1), tokenizer)
    # One logit is 3, the others 0.
    assert done.logprobs == pytest.approx([3 - math.log(math.exp(3) + VOCAB - 1)] * 3, rel=1e-6)


def test_samples_of_a_prompt_differ_and_each_is_repeatable(make_request, tokenizer):
    requests = [replace(make_request([9], new_tokens=12, temperature=2.0), sample=n) for n in range(3)]
    together = [done.ids for done in generate(requests, Counter(2), tokenizer)]
    (alone,) = generate(requests[1:2], Counter(1), tokenizer)
    assert len(set(together)) == 3
    assert alone.ids in together
