"""Sums of the native kernels for sampling: near numpy's, and the same tokens."""

import numpy as np
import pytest

from qwen3_infer.native.build import native_library
from qwen3_infer.native.sums import NativeSums
from qwen3_infer.sampling.sampling import (
    BLOCK,
    GROUPS,
    MARGIN,
    Sampling,
    choose,
    distribution,
    make_generator,
)

SIZES = (151_936, 151_936, *[4099, 600, 37] * 4)


def maxima_of(logits):
    """Return the largest of each group of each block."""
    filled = np.pad(logits, (0, -len(logits) % BLOCK), constant_values=-np.inf)
    return filled.reshape(-1, BLOCK // GROUPS, GROUPS).max(1).ravel()


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    return NativeSums(native_library(tmp_path_factory.mktemp("cache"), 2))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 4.0], ids=["equal", "flat", "of a model", "sharp"])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"temperature": 0.7}, {"top_p": 0.95}, {"top_p": 0.5, "temperature": 1.5},
        {"top_p": 0.9, "min_p": 0.01},
    ],
)  # fmt: skip
def test_tokens_drawn_by_the_native_sums_are_those_of_numpy(sums, scale, settings):
    rng, sampling, num_asked = np.random.default_rng(3), Sampling(**settings), 0

    class Counted:
        maxima, above = sums.maxima, sums.above

        def weights(self, *arguments):
            nonlocal num_asked
            num_asked += 1
            return sums.weights(*arguments)

    for seed, size in enumerate(SIZES):
        logits = (rng.gumbel(0, 2.2, size) * scale).astype(np.float32)
        logits[rng.integers(0, size, size // 10)] = -np.inf
        one, two = make_generator(seed, 0), make_generator(seed, 0)
        highest = logits.max()
        weights = np.exp((logits - highest) / np.float32(sampling.temperature)).astype(np.float64)
        exact = np.add.reduceat(weights, np.arange(0, size, BLOCK))
        found = sums.weights(logits, highest, sampling.temperature)
        np.testing.assert_allclose(found, exact, rtol=MARGIN, atol=1e-30)
        for _ in range(5):
            assert choose(logits, sampling, one, sums=Counted()) == choose(logits, sampling, two)
        assert one.random() == two.random()
    assert num_asked == 5 * len(SIZES)


@pytest.mark.parametrize("temperature", [1e-9, 1e-3, 0.6, 1.0, 1.7, 1e7])
def test_sums_and_maxima_are_those_of_numpy_at_any_temperature(sums, temperature):
    for size in SIZES:
        logits = np.random.default_rng(size).normal(0, 4, size).astype(np.float32)
        logits[:: size // 9] = -np.inf
        np.testing.assert_array_equal(sums.maxima(logits), maxima_of(logits))
        for floor in (-np.inf, 0.5, float(logits[7]), float(logits.max()), 100.0):
            np.testing.assert_array_equal(
                sums.above(logits, floor), np.flatnonzero(logits >= np.float32(floor))
            )
        below = (logits - logits.max()).astype(np.float64)
        exact = np.add.reduceat(np.exp(below / temperature), np.arange(0, size, BLOCK))
        found = sums.weights(logits, logits.max(), temperature)
        np.testing.assert_allclose(found, exact, rtol=4 * MARGIN, atol=1e-30)


def test_a_long_row_is_sorted_as_a_short_one():
    rng = np.random.default_rng(2)
    logits = np.round(rng.normal(0, 3, 50_000) * 8).astype(np.float32) / 8
    logits[::7], logits[1::7], logits[2::70] = 0.0, -0.0, -np.inf
    for row in (
        logits,
        rng.normal(0, 1e-3, 9000).astype(np.float32),
        rng.normal(0, 1e30, 5000).astype(np.float32),
    ):
        ids, _ = distribution(row, Sampling(top_p=1.0))
        np.testing.assert_array_equal(ids, np.argsort(-row, kind="stable"))


@pytest.mark.parametrize("settings", [{"top_k": 20, "top_p": 0.95}, {"min_p": 0.05}, {"top_k": 3000}])
def test_the_likeliest_found_by_maxima_are_those_of_numpy(sums, settings):
    rng, sampling = np.random.default_rng(5), Sampling(**settings)
    for size in SIZES:
        # Many equals, also at the cut.
        logits = np.round(rng.gumbel(0, 2, size) * 4).astype(np.float32) / 4
        one, two = distribution(logits, sampling, sums), distribution(logits, sampling)
        for ours, numpys in zip(one, two, strict=True):
            np.testing.assert_array_equal(ours, numpys)


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}])
@pytest.mark.parametrize("error", [-1, 1])
def test_where_the_margin_leaves_a_doubt_numpy_decides(settings, error):
    # Sums that are wrong by as much as they may be, and numbers next to every border.
    logits = np.random.default_rng(0).normal(0, 1, 2000).astype(np.float32)
    sampling, weights = Sampling(**settings), np.exp(logits.astype(np.float64))

    class Wrong:
        def weights(self, logits_V, highest, temperature):
            each = np.exp((logits_V - highest) / np.float32(temperature)).astype(np.float64)
            exact = np.add.reduceat(each, np.arange(0, len(logits_V), BLOCK))
            return exact * (1 + error * MARGIN * np.where(np.arange(len(exact)) % 2, 0.9, -0.9))

        def maxima(self, logits_V):
            return maxima_of(logits_V)

        def above(self, logits_V, floor):
            return np.flatnonzero(logits_V >= np.float32(floor))

    class Number:
        def random(self):
            return self.next

    number = Number()
    for border in (np.cumsum(weights) / weights.sum())[::7]:
        for number.next in (border - 1e-7, border, min(border + 1e-7, 1 - 1e-9)):
            assert choose(logits, sampling, number, sums=Wrong()) == choose(logits, sampling, number)
