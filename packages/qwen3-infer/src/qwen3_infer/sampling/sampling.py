"""From one row of logits to one token; randomness is an argument, nothing is remembered.

V vocabulary.
"""

import math
from dataclasses import dataclass, fields

import numpy as np

from qwen3_model.command.narrow import is_finite
from qwen3_model.errors import ConfigError

CANDIDATES = (256, 1024, 4096)
"""Likeliest tokens that are sorted at first where top_p alone cuts, and next."""
BLOCK = 512
GROUP = 32
"""Logits of which the largest stands for all when a floor of the likeliest is looked for."""
LONG_ROW = 4096
"""Logits from which on it pays to sort them as whole numbers."""
MOST_PENALTY = 1e6
"""Beyond it penalised logits would leave float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen; the neutral value of each field leaves the distribution alone."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token, whatever the other fields cut away."""
    top_k: int = 0
    """Number of likeliest tokens that may be chosen; 0 for all."""
    top_p: float = 1.0
    """Probability that the likeliest tokens together reach, which alone may be chosen."""
    min_p: float = 0.0
    """Least probability of a token that may be chosen, as a part of the likeliest's."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or the completion."""
    presence_penalty: float = 0.0
    """Is subtracted from the logits of tokens in the completion."""
    frequency_penalty: float = 0.0
    """Is subtracted from them as often as the token is there."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens and what is added to their logits, before all else."""

    def __post_init__(self) -> None:
        _require(self.temperature >= 0, "temperature", self.temperature, "at least 0")
        _require(isinstance(self.top_k, int) and self.top_k >= 0, "top_k", self.top_k, "a whole number >= 0")
        _require(self.top_k < 2**31, "top_k", self.top_k, "below 2147483648")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1")
        _require(
            1 / MOST_PENALTY <= self.repetition_penalty <= MOST_PENALTY,
            "repetition_penalty", self.repetition_penalty, f"from {1 / MOST_PENALTY:g} to {MOST_PENALTY:g}",
        )  # fmt: skip
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(abs(value) <= MOST_PENALTY, name, value, f"from -{MOST_PENALTY:g} to {MOST_PENALTY:g}")

    @property
    def is_greedy(self) -> bool:
        """Whether no randomness is involved."""
        return self.temperature == 0


REQUEST_KEYS = ("frequency_penalty", "logit_bias")
"""Fields that a request to the server sets alone: neither a flag, the YAML nor a model's folder has them."""
SAMPLING_TYPES: dict[str, type] = {
    field.name: field.type
    for field in fields(Sampling)
    if field.name not in REQUEST_KEYS and isinstance(field.type, type)
}
"""The other fields and their types, from which the keys of the YAML and of generation_config.json follow."""


def _require(condition: bool, name: str, value: float, rule: str) -> None:
    if not condition or not is_finite(value):
        raise ConfigError(f"{name}={value!r:.80} is no sampling value; it must be {rule}")


def make_generator(seed: int, index: int, sample: int = 0) -> np.random.Generator:
    """Return the random numbers of one sample of prompt `index`, independent of every other's."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, sample])))


def choose(logits_V: np.ndarray, sampling: Sampling, number: float) -> int:
    """Return the next token.

    Args:
        logits_V: float32, any real numbers, of which the largest is finite.
        sampling: How to choose; penalties are not applied here.
        number: Random, from 0 to below 1; without effect where the choice is greedy.
    """
    if sampling.is_greedy:
        return int(logits_V.argmax())
    if not (sampling.top_k or sampling.min_p) and sampling.top_p == 1:
        return _draw_of_all(logits_V, sampling.temperature, number)
    return _draw(*distribution(logits_V, sampling), number)


def choose_among(
    values_C: np.ndarray, ids_C: np.ndarray, sampling: Sampling, rng: np.random.Generator
) -> int | None:
    """Return what `choose` would of all logits, from the C largest alone.

    None, and no number drawn, where others than these may count: a penalty or a larger `top_k` asks for them,
    the smallest of these is as large as the last that counts, or one is no finite number.

    Args:
        values_C: float32, the largest logits in any order.
        ids_C: Their ids.
        sampling: How to choose.
        rng: Random numbers of this request alone.
    """
    cuts = Sampling(
        temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p
    )
    count = 1 if sampling.is_greedy else sampling.top_k
    if sampling != cuts or not 0 < count < len(ids_C) or not np.isfinite(values_C).all():
        return None
    order = np.lexsort((ids_C, -values_C))
    values_C, ids_C = values_C[order], ids_C[order]
    if values_C[count - 1] == values_C[-1]:
        return None
    if sampling.is_greedy:
        return int(ids_C[0])
    indices, probs = distribution(values_C, sampling)
    return int(ids_C[_draw(indices, probs, rng.random())])


def _draw(ids: np.ndarray, probs: np.ndarray, number: float) -> int:
    cumulative = np.cumsum(probs)
    index = np.searchsorted(cumulative, number * cumulative[-1], side="right")
    return int(ids[min(int(index), len(ids) - 1)])


def _draw_of_all(logits_V: np.ndarray, temperature: float, number: float) -> int:
    """Draw without any cut, in the order of ids: first a block of them, then one of it."""
    with np.errstate(over="ignore"):
        weights_V = np.exp((logits_V - logits_V.max()) / np.float32(temperature))
    starts = np.arange(0, len(weights_V), BLOCK)
    blocks = np.cumsum(np.add.reduceat(weights_V, starts, dtype=np.float64))
    wanted = number * blocks[-1]
    block = min(int(np.searchsorted(blocks, wanted, side="right")), len(blocks) - 1)
    within = np.cumsum(weights_V[starts[block] : starts[block] + BLOCK], dtype=np.float64)
    index = int(np.searchsorted(within, wanted - (blocks[block - 1] if block else 0.0), side="right"))
    # Rounding may lead one beyond the last that can come.
    last = int(np.flatnonzero(weights_V[starts[block] : starts[block] + BLOCK])[-1])
    return int(starts[block]) + min(index, last)


def distribution(logits_V: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that may follow, likeliest first and equals by id, with their probabilities.

    Cuts in transformers' order, each on the renormalised rest of the one before: top_k, top_p, min_p.
    """
    highest = logits_V.max()
    if sampling.top_k == 0 and sampling.top_p < 1:
        ids, weights = _nucleus(logits_V, highest, sampling)
    else:
        ids = _likeliest_first(logits_V, sampling.top_k or _num_above(logits_V, highest, sampling))
        weights = _weights(logits_V[ids], highest, sampling.temperature)
        if sampling.top_p < 1:
            weights = weights[_sum_before(weights) < sampling.top_p * weights.sum()]
    if sampling.min_p > 0:
        weights = weights[weights >= sampling.min_p * weights[0]]
    return ids[: len(weights)], weights / weights.sum()


def _nucleus(logits_V: np.ndarray, highest: np.float32, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return the likeliest ids that together reach top_p of all, with their weights.

    Most often few do, so that no more are sorted than it takes.
    """
    least = sampling.top_p * _total(logits_V, highest, sampling.temperature)
    size = len(logits_V)
    ids, weights = np.empty(0, np.int64), np.empty(0)
    for count in (*CANDIDATES, size):
        ids = _likeliest_first(logits_V, count)
        weights = _weights(logits_V[ids], highest, sampling.temperature)
        if len(ids) == size or weights.sum() >= least:
            break
    return ids, weights[_sum_before(weights) < least]


def _num_above(logits_V: np.ndarray, highest: np.float32, sampling: Sampling) -> int:
    """Return how many tokens `min_p` may keep; 0 for all."""
    if not sampling.min_p:
        return 0
    margin = 1 + 1e-3 * sampling.temperature  # far more than rounding; what is too much is cut afterwards
    floor = float(highest) + sampling.temperature * math.log(sampling.min_p) - margin
    return int(np.count_nonzero(logits_V >= np.float32(floor)))


def _likeliest_first(logits_V: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` likeliest ids, likeliest first and equals by id; all of them for 0."""
    if not 0 < count < len(logits_V):
        return _likeliest_order(logits_V)
    # A whole sort of 150,000 logits costs a hundred times as much as finding those above a floor first.
    candidates = np.flatnonzero(logits_V >= _floor(logits_V, count))
    return candidates[_likeliest_order(logits_V[candidates])][:count]


def _floor(logits_V: np.ndarray, count: int) -> np.float32:
    """Return a value that at least `count` logits reach, and not many more."""
    num_groups = len(logits_V) // GROUP
    if num_groups < 2 * count:
        return np.partition(logits_V, -count)[-count]
    # The largest of so many groups are so many logits.
    largest = logits_V[: num_groups * GROUP].reshape(GROUP, num_groups).max(0)
    return np.partition(largest, -count)[-count]


def _likeliest_order(logits: np.ndarray) -> np.ndarray:
    """Return the indices of float32 logits, none NaN, likeliest first and equals in their order."""
    if len(logits) < LONG_ROW:
        return np.argsort(-logits, kind="stable")
    # Numbers of a float32's order, its index below: numpy sorts whole numbers several times as fast.
    bits = (logits + np.float32(0)).view(np.int32)  # -0 is 0
    ascending = np.where(bits < 0, ~bits, bits | np.int32(-(1 << 31))).view(np.uint32)
    keys = (~ascending).astype(np.uint64) << np.uint64(32) | np.arange(len(logits), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _weights(logits: np.ndarray, highest: np.float32, temperature: float) -> np.ndarray:
    # The difference first: a temperature near 0 must not make infinities of the logits themselves.
    below = logits.astype(np.float64) - np.float64(highest)
    with np.errstate(over="ignore"):
        return np.exp(below / temperature)


def _total(logits_V: np.ndarray, highest: np.float32, temperature: float) -> float:
    """Return the sum of all weights; float32 does for single ones, and takes a tenth of the time."""
    with np.errstate(over="ignore"):
        return float(np.exp((logits_V - highest) / np.float32(temperature)).sum(dtype=np.float64))


def _sum_before(weights: np.ndarray) -> np.ndarray:
    return np.cumsum(weights) - weights


def likeliest_log_probabilities(logits_V: np.ndarray, count: int) -> tuple[tuple[int, float], ...]:
    """Return the `count` likeliest tokens, likeliest first, each with its natural log-probability."""
    if count == 0:
        return ()
    tokens = _likeliest_first(logits_V, count)
    wide_V = logits_V.astype(np.float64)
    highest = wide_V.max()
    total = np.log(np.exp(wide_V - highest).sum())
    return tuple((int(token), float(wide_V[token] - highest - total)) for token in tokens)


def log_probability(logits_V: np.ndarray, token: int) -> float:
    """Return the natural logarithm of the probability that the model itself gives to `token`."""
    wide_V = logits_V.astype(np.float64)
    highest = wide_V.max()
    return float(wide_V[token] - highest - np.log(np.exp(wide_V - highest).sum()))
