import numpy as np
import pytest

from qwen3_infer.sampling.penalties import Penalties
from qwen3_infer.sampling.sampling import Sampling, choose, distribution, log_probability, make_generator
from qwen3_model.errors import ConfigError

# Probabilities 1/2, 1/4, 1/8, 1/16, 1/16 of tokens 2, 0, 4, 1, 3.
LOGITS = np.log(np.array([4, 1, 8, 1, 2], np.float32))
RTOL_F32 = 1e-5  # float32 logits


def penalise(logits, sampling, prompt_ids, completion_ids):
    penalties = Penalties(sampling, prompt_ids)
    for token in completion_ids:
        penalties.add(token)
    return penalties.apply(logits)


def probs(**sampling):
    ids, values = distribution(LOGITS, Sampling(**sampling))
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def test_without_settings_the_distribution_is_the_models():
    assert probs() == pytest.approx({2: 1 / 2, 0: 1 / 4, 4: 1 / 8, 1: 1 / 16, 3: 1 / 16}, rel=RTOL_F32)


def test_half_the_temperature_squares_the_odds():
    assert probs(temperature=0.5) == pytest.approx(
        {2: 64 / 86, 0: 16 / 86, 4: 4 / 86, 1: 1 / 86, 3: 1 / 86}, rel=RTOL_F32
    )


def test_top_k_keeps_the_likeliest_and_renormalises():
    assert probs(top_k=2) == pytest.approx({2: 2 / 3, 0: 1 / 3}, rel=RTOL_F32)
    assert probs(top_k=1) == {2: 1.0}
    assert len(probs(top_k=99)) == 5


def test_top_k_keeps_the_lower_id_of_two_equals():
    assert list(probs(top_k=4)) == [2, 0, 4, 1]


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    assert list(probs(top_p=0.49)) == [2]
    assert list(probs(top_p=0.51)) == [2, 0]
    assert list(probs(top_p=0.8)) == [2, 0, 4]
    assert probs(top_p=0.8) == pytest.approx({2: 4 / 7, 0: 2 / 7, 4: 1 / 7}, rel=RTOL_F32)


def test_min_p_is_relative_to_the_likeliest():
    assert list(probs(min_p=0.49)) == [2, 0]
    assert list(probs(min_p=0.51)) == [2]
    assert list(probs(min_p=0.2)) == [2, 0, 4]


def test_cuts_follow_each_other_on_the_renormalised_rest():
    # top_k leaves 2/3 and 1/3; then 0.6 is reached by the first alone.
    assert list(probs(top_k=2, top_p=0.6)) == [2]
    assert list(probs(top_p=0.6)) == [2, 0]


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "thinking", "everything"])
def test_distributions_are_those_of_transformers(name, golden_distributions):
    case = dict(golden_distributions["cases"][name])
    theirs = np.array(case.pop("probs"))
    sampling = Sampling(**case)
    logits = np.array(golden_distributions["logits"])
    ids, values = distribution(penalise(logits, sampling, golden_distributions["seen"], []), sampling)
    ours = np.zeros_like(theirs)
    ours[ids] = values
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # a penalty is float32 here
    assert np.array_equal(ours > 0, theirs > 0)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_once():
    logits = np.array([2.0, -2.0, 3.0, -3.0], np.float32)
    found = penalise(logits, Sampling(repetition_penalty=2.0), [0, 1, 1], [0])
    np.testing.assert_array_equal(found, np.array([1.0, -4.0, 3.0, -3.0], np.float32))
    np.testing.assert_array_equal(logits, np.array([2.0, -2.0, 3.0, -3.0], np.float32))


def test_presence_penalty_counts_only_what_was_generated_and_once():
    logits = np.array([2.0, -2.0, 3.0], np.float32)
    found = penalise(logits, Sampling(presence_penalty=0.5), [0], [1, 1, 2])
    np.testing.assert_array_equal(found, np.array([2.0, -2.5, 2.5], np.float32))


def test_frequency_penalty_counts_each_time_and_biases_come_first():
    logits, sampling = (
        np.array([2.0, -2.0, 3.0], np.float32),
        Sampling(frequency_penalty=0.25, repetition_penalty=2.0, logit_bias=((0, 4.0), (2, -5.0))),
    )
    found = penalise(logits, sampling, [1], [2, 1, 2, 2])
    np.testing.assert_array_equal(found, np.array([6.0, -4.25, -4.75], np.float32))


def test_temperature_zero_takes_the_likeliest_whatever_the_number():
    picks = {choose(LOGITS, Sampling(temperature=0.0), number / 20) for number in range(20)}
    assert picks == {2}


def test_draws_follow_the_distribution():
    rng = make_generator(1, 2)
    picks = [choose(LOGITS, Sampling(), rng.random()) for _ in range(4000)]
    shares = np.bincount(picks, minlength=5) / 4000
    # Four standard deviations of a share of 1/2 in 4000 draws.
    np.testing.assert_allclose(shares, [1 / 4, 1 / 16, 1 / 2, 1 / 16, 1 / 8], atol=4 * 0.5 / 4000**0.5)


def test_requests_have_different_and_repeatable_random_numbers():
    first, again, other = make_generator(0, 0), make_generator(0, 0), make_generator(0, 1)
    values = first.random(4).tolist()
    assert values == again.random(4).tolist()
    assert values != other.random(4).tolist()


def test_log_probability_is_the_models_own():
    assert log_probability(LOGITS, 4) == pytest.approx(np.log(1 / 8), rel=RTOL_F32)


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 is no sampling value; it must be at least 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1 is no sampling value; it must be a whole number >= 0"),
        ({"top_k": 2**31}, "top_k=2147483648 is no sampling value; it must be below 2147483648"),
        ({"temperature": 10**400}, "temperature=10{79} is no sampling value; it must be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 is no sampling value; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": 1.5}, "min_p=1.5 is no sampling value; it must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is no sampling value; it must be from 1e-06"),
        ({"presence_penalty": float("inf")}, "presence_penalty=inf"),
    ],
)
def test_values_out_of_range_are_refused(values, rule):
    with pytest.raises(ConfigError, match=rule.replace(".", r"\.").replace("(", r"\(")):
        Sampling(**values)


@pytest.mark.parametrize("temperature", [1e-320, 1e308])
def test_a_temperature_at_the_end_of_the_numbers_still_gives_a_distribution(temperature):
    ids, values = distribution(LOGITS * 1000, Sampling(temperature=temperature))
    assert ids[0] == 2
    assert values.sum() == pytest.approx(1)
    assert values[0] == pytest.approx(1 if temperature < 1 else 1 / 5)


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1e-50}, {"repetition_penalty": 10**400}, {"presence_penalty": -1e39}]
)
def test_a_penalty_that_leaves_float32_is_refused(penalty):
    with pytest.raises(ConfigError, match="it must be from"):
        Sampling(**penalty)


def sorted_distribution(logits_V, sampling):
    """The same by a sort of everything, in float64."""
    ids = np.argsort(-logits_V, kind="stable")
    ids = ids[: sampling.top_k] if sampling.top_k else ids
    weights = np.exp((logits_V[ids].astype(np.float64) - logits_V.max()) / sampling.temperature)
    if sampling.top_p < 1:
        weights = weights[np.cumsum(weights) - weights < sampling.top_p * weights.sum()]
    weights = weights[weights >= sampling.min_p * weights[0]]
    return ids[: len(weights)], weights / weights.sum()


@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0], ids=["flat", "of a model", "sharp"])
@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0.95}, {"top_p": 0.3, "temperature": 0.5}, {"top_k": 20, "top_p": 0.95}, {"top_k": 3000},
        {"min_p": 0.05}, {"min_p": 1.0}, {"top_p": 0.9, "min_p": 0.02, "temperature": 1.7}, {},
    ],
)  # fmt: skip
def test_what_is_sorted_in_part_is_what_a_whole_sort_gives(scale, settings):
    rng, sampling = np.random.default_rng(5), Sampling(**settings)
    for size in (151_936, 4099, 37):
        logits = (rng.gumbel(0, 2.2, size) * scale).astype(np.float32).round(2)  # with equals
        logits[rng.integers(0, size, size // 10)] = -np.inf
        ids, found = distribution(logits, sampling)
        expected_ids, expected = sorted_distribution(logits, sampling)
        # float32 sums may move a cut between the last two.
        assert abs(len(ids) - len(expected_ids)) <= 1
        count = min(len(ids), len(expected_ids))
        np.testing.assert_array_equal(ids[:count], expected_ids[:count])
        np.testing.assert_allclose(found[:count], expected[:count], rtol=2e-4)


def test_draws_without_a_cut_follow_the_numbers_through_all_ids():
    logits = np.random.default_rng(6).normal(0, 2, 2000).astype(np.float32)
    logits[[0, 511, 512, 1023, 1999]] = -np.inf
    weights = np.exp(logits.astype(np.float64))
    ends = np.cumsum(weights) / weights.sum()
    for token in np.flatnonzero(weights):
        for number in (ends[token] - 1e-6, ends[token] - weights[token] / weights.sum() + 1e-6):
            if weights[token] / weights.sum() > 1e-5:
                assert choose(logits, Sampling(), number) == token
    for number in (0.0, np.nextafter(1.0, 0.0)):
        assert weights[choose(logits, Sampling(), number)] > 0
