"""The next tokens of all requests of a step, by C++ where there is such, and by numpy where there is none.

V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qwen3_infer.sampling.penalties import Penalties
from qwen3_infer.sampling.restriction import Restriction
from qwen3_infer.sampling.sampling import choose, likeliest_log_probabilities, log_probability


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A request's logits and what is asked of them."""

    logits_V: np.ndarray
    """float32, the model's own."""
    penalties: Penalties
    """Settings of sampling and the tokens that they penalise."""
    number: float
    """The one random number of the choice, from 0 to below 1."""
    restriction: Restriction | None = None
    """Tokens that may not follow; None where all may."""
    logprob: bool = False
    """Whether the log-probability of the token is wanted."""
    num_top: int = 0
    """Number of likeliest tokens whose log-probabilities are wanted, too."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, with what is wanted of the model's own probabilities, before any change."""

    token: int
    logprob: float | None = None
    """Natural logarithm."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with theirs."""


class Chooser(Protocol):
    """Compiled choices."""

    def choose(self, rows: Sequence[Row]) -> list[Chosen | None]:
        """Return what `choose_row` does, None for each row of which it is not certain."""
        ...


def choose_rows(rows: Sequence[Row], chooser: Chooser | None) -> list[Chosen | None]:
    """Return the choice for each row; None for logits that are no numbers, so that none can be chosen."""
    found = chooser.choose(rows) if chooser else [None] * len(rows)
    return [chosen or choose_row(row) for row, chosen in zip(rows, found, strict=True)]


def choose_row(row: Row) -> Chosen | None:
    """Return the choice for one row, by numpy alone; None where the largest logit is no finite number."""
    if not np.isfinite(row.logits_V.max()):
        return None
    logits_V = row.penalties.apply(row.logits_V)
    if row.restriction is not None:
        logits_V = row.restriction.apply(logits_V)
    token = choose(logits_V, row.penalties.sampling, row.number)
    logprob = log_probability(row.logits_V, token) if row.logprob else None
    return Chosen(token, logprob, likeliest_log_probabilities(row.logits_V, row.num_top))
