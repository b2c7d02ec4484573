"""Tokens chosen by the native kernels: those of numpy, for any settings and logits, in any batch."""

import itertools

import numpy as np
import pytest

from qwen3_infer.native.build import native_library
from qwen3_infer.native.chooser import NativeChooser
from qwen3_infer.native.numpy_loop import exponential_loop
from qwen3_infer.sampling.penalties import Penalties
from qwen3_infer.sampling.restriction import Restriction
from qwen3_infer.sampling.rows import Row, choose_row, choose_rows
from qwen3_infer.sampling.sampling import Sampling, distribution
from qwen3_infer.schedule.generator import generate

SIZES = (4099, 600, 37, 1)
SETTINGS = [
    {"temperature": 0.0},
    *(
        {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        for temperature, top_k, top_p, min_p in itertools.product(
            (1.0, 0.6, 1.9, 0.01, 80.0), (0, 1, 20, 2500), (1.0, 0.5, 0.95), (0.0, 0.05, 1e-6)
        )
    ),
]
SHARE_LEFT = 0.01
"""Most of the rows of a model's kind that may be left to numpy."""


@pytest.fixture(scope="module")
def chooser(cache_dir):
    return NativeChooser(native_library(cache_dir, 2))


def make_logits(kind, size, rng):
    logits = rng.gumbel(0, 2.2, size).astype(np.float32)
    if kind == "equal":
        logits[:] = -3.5
    elif kind == "flat":
        logits *= np.float32(0.01)
    elif kind == "sharp":
        logits *= np.float32(6)
    elif kind == "far apart":
        logits *= np.float32(1e30)
    elif kind == "bfloat16":
        logits = (logits.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    elif kind == "tied":
        logits = np.round(logits) + np.where(rng.random(size) < 0.5, np.float32(0), np.float32(-0.0))
    elif kind == "masked":
        logits[rng.integers(0, size, 2 * size)] = -np.inf
        logits[size // 2] = 1
    elif kind == "ahead":
        logits[rng.integers(0, size, 3)] += 30
    return logits.astype(np.float32)


def make_row(logits, settings, rng, **wanted):
    penalties = Penalties(Sampling(**settings), rng.integers(0, len(logits), 30).tolist())
    for token in rng.integers(0, len(logits), 20).tolist():
        penalties.add(token)
    return Row(logits_V=logits, penalties=penalties, number=rng.random(), **wanted)


def assert_equal_to_numpy(rows, found):
    for row, ours in zip(rows, found, strict=True):
        numpys = choose_row(row)
        assert ours.token == numpys.token, row
        assert [token for token, _ in ours.top] == [token for token, _ in numpys.top]
        values = [(each.logprob or 0.0, *(value for _, value in each.top)) for each in (ours, numpys)]
        # The sum of the weights is good to 7e-12 of it.
        np.testing.assert_allclose(*values, rtol=1e-12, atol=2e-11)


@pytest.mark.parametrize(
    "kind", ["model", "flat", "sharp", "equal", "tied", "bfloat16", "masked", "ahead", "far apart"]
)
def test_tokens_and_log_probabilities_are_those_of_numpy(chooser, kind):
    rng, num_left, num_rows = np.random.default_rng(3), 0, 0
    for size in SIZES:
        rows = []
        for settings in SETTINGS:
            wanted = {"logprob": rng.random() < 0.5, "num_top": int(rng.integers(0, 21))}
            if kind == "far apart":
                wanted["num_top"] = 0
            rows.append(make_row(make_logits(kind, size, rng), settings, rng, **wanted))
        before = [row.logits_V.copy() for row in rows]
        found = chooser.choose(rows)
        assert_equal_to_numpy(rows, choose_rows(rows, chooser))
        for row, logits in zip(rows, before, strict=True):
            np.testing.assert_array_equal(row.logits_V, logits)
        if size > 1000:
            num_left, num_rows = num_left + found.count(None), num_rows + len(rows)
    # Equal weights may reach a share of all at the very border of one of them.
    if kind in ("model", "flat", "sharp", "ahead"):
        assert num_left <= SHARE_LEFT * num_rows


@pytest.mark.parametrize("scale", [1e-3, 0.4, 2.5], ids=["flattest", "flat", "of a model"])
def test_a_whole_vocabulary_is_chosen_from_as_by_numpy_and_seldom_left_to_it(chooser, scale):
    rng = np.random.default_rng(7)
    settings = [
        {}, {"temperature": 0.7}, {"top_p": 0.95}, {"top_p": 0.999, "temperature": 1.3}, {"top_k": 5000},
        {"top_k": 50, "top_p": 0.9}, {"min_p": 0.02}, {"top_p": 0.9, "min_p": 1e-4},
    ]  # fmt: skip
    logits = [(scale * rng.standard_normal(151_936)).astype(np.float32) for _ in range(3)]
    rows = [make_row(each, one, rng) for one in settings for each in logits]
    found = chooser.choose(rows)
    assert None not in found
    assert_equal_to_numpy(rows, found)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 300}, {"min_p": 0.01}]
)
def test_numbers_next_to_every_border_give_numpys_token_or_none(chooser, settings):
    rng = np.random.default_rng(0)
    logits, sampling = rng.normal(0, 1, 2000).astype(np.float32), Sampling(**settings)
    if sampling.top_k == 0 and sampling.top_p == 1 and sampling.min_p == 0:
        # In the order of ids, and in float32, as numpy draws them.
        weights = np.exp((logits - logits.max()) / np.float32(sampling.temperature)).astype(np.float64)
    else:
        weights = distribution(logits, sampling)[1]
    borders = np.cumsum(weights / weights.sum())[:-1:7]
    numbers = [border + step for border in borders for step in (-1e-8, -1e-13, 0.0, 1e-13, 1e-8)]
    rows = [Row(logits_V=logits, penalties=Penalties(sampling), number=number) for number in numbers]
    found = chooser.choose(rows)
    assert_equal_to_numpy(rows, choose_rows(rows, chooser))
    assert None not in found[4::5]
    assert found[2::5] == [None] * len(borders)  # of numpy's own numbers the borders are the same
    assert exponential_loop()[0]


def test_penalties_biases_and_what_may_not_follow_are_those_of_numpy(chooser):
    rng, rows = np.random.default_rng(5), []
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.3}
    for changes, base in itertools.product(
        [{}, {"repetition_penalty": 0.7}, penalties, penalties | {"logit_bias": ((3, 9.5), (17, -100.0))}],
        [{"temperature": 0.0}, {}, {"top_p": 0.9, "top_k": 40}, {"min_p": 0.01}],
    ):
        for size in SIZES[:3]:
            allowed = rng.integers(0, 2**32, size // 50 + 1, np.uint32)
            some = tuple(rng.integers(0, size, 5).tolist())
            for restriction in (
                None,
                Restriction(allowed=allowed),
                Restriction(forbidden=some),
                Restriction(allowed=allowed, forbidden=some),
                Restriction(allowed=np.array([1 << 7], np.uint32), forbidden=(7,)),
            ):
                logits = make_logits("model", size, rng)
                rows.append(
                    make_row(logits, base | changes, rng, restriction=restriction, logprob=True, num_top=3)
                )
    before = [row.logits_V.copy() for row in rows]
    assert_equal_to_numpy(rows, choose_rows(rows, chooser))
    for row, logits in zip(rows, before, strict=True):
        np.testing.assert_array_equal(row.logits_V, logits)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 300, 599])
def test_logits_that_are_no_numbers_give_no_token(chooser, value, place):
    rng = np.random.default_rng(1)
    rows = []
    for settings in SETTINGS[:8]:
        logits = make_logits("model", 600, rng)
        logits[place] = value
        rows.append(make_row(logits, settings, rng))
    rows.append(make_row(np.full(600, -np.inf, np.float32), {}, rng))
    assert choose_rows(rows, chooser) == [None] * len(rows)
    assert chooser.choose(rows) == [None] * len(rows)


def test_a_token_outside_of_the_vocabulary_is_left_to_numpy(chooser):
    rng = np.random.default_rng(1)
    logits = make_logits("model", 600, rng)
    row = make_row(logits, {}, rng, restriction=Restriction(forbidden=(600,)))
    with pytest.raises(IndexError):
        choose_rows([row], chooser)


def test_a_row_is_chosen_from_alike_alone_and_among_others(chooser):
    rng = np.random.default_rng(2)
    rows = [
        make_row(make_logits(kind, 4099, rng), settings, rng, logprob=True, num_top=5)
        for kind, settings in zip(itertools.cycle(("model", "masked", "flat")), SETTINGS[::5], strict=False)
    ]
    assert chooser.choose(rows) == [chooser.choose([row])[0] for row in rows]


def test_without_numpys_loop_its_own_sums_decide(chooser, monkeypatch):
    rng = np.random.default_rng(2)
    monkeypatch.setattr(chooser, "_loop", (None, None))
    rows = [make_row(make_logits("model", 600, rng), one, rng) for one in ({}, {"top_p": 0.9}, {"top_k": 9})]
    assert_equal_to_numpy(rows, choose_rows(rows, chooser))


class Hashed:
    """An engine whose logits depend on the newest token and its position alone."""

    unit, pieces, shares_beginnings, num_tokens = 32, (128, 32), False, 4096

    def __init__(self, num_rows, chooser):
        self.num_rows, self.chooser = num_rows, chooser

    def read(self, start, ids, position, length):
        return self._after(ids[-1], position + len(ids) - 1)

    def decode(self, starts, tokens, positions):
        return [self._after(*each) for each in zip(tokens, positions, strict=True)]

    def _after(self, token, position):
        return make_logits("model", 600, np.random.default_rng([int(token), int(position)]))


class NoText:
    def decode(self, ids):
        return ""


@pytest.mark.parametrize("uses_kernels", [True, False], ids=["native", "numpy"])
def test_a_batch_of_mixed_settings_gives_each_request_its_own_tokens(chooser, make_request, uses_kernels):
    settings = [
        {"temperature": 0.0, "repetition_penalty": 1.2}, {}, {"top_p": 0.9, "frequency_penalty": 0.5},
        {"top_k": 20}, {"min_p": 0.02, "presence_penalty": -0.5}, {"logit_bias": ((3, 5.0),)},
        {"temperature": 1.4, "top_p": 0.99},
    ]  # fmt: skip
    requests = [
        make_request(range(1, 5 + index), index=index, new_tokens=6 + index, **{"temperature": 1.0, **each})
        for index, each in enumerate(settings * 2)
    ]
    together = generate(requests, Hashed(5, chooser if uses_kernels else None), NoText())
    alone = [next(generate([request], Hashed(1, None), NoText())) for request in requests]
    assert {each.request.index: each.ids for each in together} == {
        each.request.index: each.ids for each in alone
    }


def test_a_field_that_the_kernel_does_not_know_is_for_numpy(chooser, monkeypatch):
    rng = np.random.default_rng(7)
    rows = [make_row(make_logits("model", 600, rng), {"min_p": min_p}, rng) for min_p in (0.0, 0.05)]
    assert None not in chooser.choose(rows)
    monkeypatch.setattr("qwen3_infer.native.chooser.OTHERS", [("min_p", 0.0)])
    first, second = chooser.choose(rows)
    assert first is not None
    assert second is None
