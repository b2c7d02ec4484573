import math

import numpy as np
import pytest

from qwen3_model.errors import ConfigError
from qwen3_train.data import blend_order
from qwen3_train.data.blend_order import exhaustive_order, weighted_order
from qwen3_train.data.compiled_order import compiled_serve
from qwen3_train.settings.blend import Blend, parse_blend, samples_per_file, split_bounds


def test_weights_and_prefixes_alternate():
    assert parse_blend(["3", "a", "1", "b"], "data_path") == Blend(("a", "b"), (0.75, 0.25))
    assert parse_blend("0.3 a 0.1 b", "data_path").prefixes == ("a", "b")
    assert parse_blend(["1", "/data/wiki"], "data_path") == Blend(("/data/wiki",), (1.0,))


def test_prefixes_alone_have_no_weights():
    assert parse_blend(["a", "b"], "data_path") == Blend(("a", "b"), None)
    assert parse_blend("one", "data_path") == Blend(("one",), None)


@pytest.mark.parametrize("data_path", [[], "", None, ["0", "a"], ["-1", "a"], ["nan", "a"]])
def test_empty_or_negative_blends_are_refused(data_path):
    with pytest.raises(ConfigError, match="data_path"):
        parse_blend(data_path, "data_path")


def test_split_cuts_sequences_by_rounded_fractions():
    assert split_bounds("1, 0, 0", 10) == [(0, 10), None, None]
    assert split_bounds("90,5,5", 33) == [(0, 30), (30, 31), (31, 33)]  # 29.7, 31.35, 33
    assert split_bounds("0, 1", 4) == [None, (0, 4), None]
    with pytest.raises(ConfigError, match="split="):
        split_bounds("0,0,0", 4)


def test_a_weighted_file_is_asked_for_half_a_percent_more():
    assert samples_per_file(Blend(("a",), (1.0,)), 8000) == [8040]
    assert samples_per_file(Blend(("a", "b"), (0.75, 0.25)), 100) == [76, 26]  # 75.375, 25.125
    assert samples_per_file(Blend(("a",), None), 100) == [100]
    assert samples_per_file(Blend(("a", "b"), None), 100) == [None, None]


def test_equally_late_files_are_served_as_megatron_rounds_their_weights():
    # As floats 3/7 + 2/7 + 2/7 is a bit below 1. Megatron divides by that sum once more; after seven samples,
    # where all files are on time, it is then the second one's turn instead of the first one's.
    weights = parse_blend(["3", "a", "2", "b", "2", "c"], "data_path").weights
    assert weighted_order(weights, 10)[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 2]


def test_order_serves_the_file_that_is_most_behind():
    files, numbers = weighted_order([0.5, 0.5], 4)
    assert files.tolist() == [0, 1, 0, 1]
    assert numbers.tolist() == [0, 0, 1, 1]
    files, _ = weighted_order([0.75, 0.25], 8)
    # Step 0 and 1 weigh by 1: errors (.75,.25), (-.25,.25), then (.5,-.5), (1.25,-.25), (1,0), (.75,.25), ...
    assert files.tolist() == [0, 1, 0, 0, 0, 1, 0, 0]


def test_exhaustive_order_serves_everything_once():
    files, numbers = exhaustive_order([3, 5, 1])
    assert sorted(zip(files.tolist(), numbers.tolist(), strict=True)) == [
        (file, number) for file, size in enumerate([3, 5, 1]) for number in range(size)
    ]
    assert np.bincount(files).tolist() == [3, 5, 1]


@pytest.mark.parametrize(
    ("data_path", "sentence"),
    [
        (["0,3", "a", "0,7", "b"], "the weight '0,3' must be a number above 0"),
        (["30%", "a", "70%", "b"], "the weight '30%'"),
        (["1_0", "a"], "the weight '1_0'"),
        (["0.3", "a", "x", "b"], "the weight 'x'"),
        (["inf", "a", "1", "b"], "the weight 'inf'"),
        (["0.3", "a", "b"], "has 3 items; give a weight before each prefix"),
        ([True, "a"], "True is neither a prefix nor a weight"),
        ([["a"]], r"\['a'\] is neither"),
    ],
)
def test_what_is_no_weight_is_named(data_path, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_blend(data_path, "data_path")


@pytest.mark.parametrize(
    ("split", "named"),
    [
        ("95.5.0", "'95.5.0'"), (".", "'.'"), ("95%, 5%", "'95%'"), ("-95, 5", "'-95'"), ("95, 5x", "'5x'"),
        ("train", "'train'"), ("95,,x", "'x'"), ("nan, 1", "'nan'"), ("1e999, 1", "'1e999'"), ("", "''"),
    ],
)  # fmt: skip
def test_what_is_no_proportion_is_named(split, named):
    with pytest.raises(ConfigError, match=named):
        split_bounds(split, 100)


@pytest.mark.parametrize("split", ["90,5,5", "90, 5, 5", " 90 5 5 ", [90, 5, 5], "90/5/5", "9e1,5.,5.0"])
def test_proportions_may_be_written_as_people_do(split):
    assert split_bounds(split, 100) == [(0, 90), (90, 95), (95, 100)]


def test_more_files_than_sixteen_bits_count_are_told_apart():
    files, numbers = exhaustive_order([1] * 33_000)
    assert sorted(files.tolist()) == list(range(33_000))
    assert set(numbers.tolist()) == {0}


def one_after_the_other(shares, left, total):
    """Serve samples in plain Python, as Megatron's own loop does."""
    served, files, numbers = [0] * len(shares), [], []
    for sample in range(total):
        lags = [
            share * max(sample, 1.0) - count if left is None or count < size else -math.inf
            for share, count, size in zip(shares, served, left or shares, strict=True)
        ]
        behind = lags.index(max(lags))
        files.append(behind)
        numbers.append(served[behind])
        served[behind] += 1
    return files, numbers


@pytest.mark.parametrize("seed", range(12))
def test_blocks_side_by_side_give_the_order_of_one_sample_after_the_other(monkeypatch, seed):
    monkeypatch.setattr(blend_order, "BLOCK", 64)
    monkeypatch.setattr(blend_order, "CHUNK_ELEMENTS", 200)
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 14))
    weights = {
        0: rng.random(count) + 1e-3, 1: rng.random(count) ** 8 + 1e-9, 2: np.ones(count),
        3: rng.integers(1, 4, count).astype(float),
    }[seed % 4]  # fmt: skip
    total = int(rng.integers(1, 3000))
    normal = weights / weights.sum()
    shares = (normal / normal.sum()).tolist()
    got = weighted_order(normal.tolist(), total)
    assert [each.tolist() for each in got] == list(one_after_the_other(shares, None, total))
    sizes = rng.integers(0, 400, count) if seed % 2 else np.ceil(400 * shares[0] * np.ones(count)).astype(int)
    got = exhaustive_order(sizes.tolist())
    parts = (sizes / max(int(sizes.sum()), 1)).tolist()
    wanted = one_after_the_other(parts, sizes.tolist(), int(sizes.sum()))
    assert [each.tolist() for each in got] == list(wanted)


@pytest.mark.skipif(compiled_serve() is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("count", [1, 3, 8, 13, 64])
def test_compiled_code_gives_the_order_of_numpy(monkeypatch, count):
    rng = np.random.default_rng(count)
    weights = (rng.random(count) ** 3 + 1e-6).tolist()
    sizes = rng.integers(0, 900, count).tolist()
    wanted = weighted_order(weights, 20_000), weighted_order([1.0] * count, 999), exhaustive_order(sizes)
    monkeypatch.setattr(blend_order, "COMPILED_SAMPLES", 0)
    monkeypatch.setattr(blend_order, "PIECE", 777)
    monkeypatch.setattr(blend_order, "_serve_chunk", None)
    got = weighted_order(weights, 20_000), weighted_order([1.0] * count, 999), exhaustive_order(sizes)
    for order, other in zip(got, wanted, strict=True):
        for values, others in zip(order, other, strict=True):
            np.testing.assert_array_equal(values, others)


def test_blocks_that_begin_wrong_are_put_right(monkeypatch):
    monkeypatch.setattr(blend_order, "BLOCK", 32)
    wanted = weighted_order([0.31, 0.29, 0.4], 900)
    monkeypatch.setattr(
        blend_order, "_round_counts", lambda shares, left, samples: np.zeros((len(samples), 3), int)
    )
    for rounds in (1, 2, 100):
        monkeypatch.setattr(blend_order, "MAX_ROUNDS", rounds)
        for got, want in zip(weighted_order([0.31, 0.29, 0.4], 900), wanted, strict=True):
            np.testing.assert_array_equal(got, want)
