"""Log-probabilities of given tokens, by the model that generation uses.

L length, D hidden, V vocabulary, M rows, T targets.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3_infer.steps.pieces import cut
from qwen3_infer.steps.scored import Scored
from qwen3_model.errors import WeightError

HEAD_ROWS = 32  # positions whose logits exist at a time


class Reader(Protocol):
    """A model that reads one sequence."""

    pieces: tuple[int, ...]
    """Lengths in which it is read, longest first."""
    piece_unit: int
    """Positions of pieces are multiples of it."""

    def hidden(self, ids: Sequence[int], start: int, length: int) -> NDArray[np.float32]:
        """Read `ids`, filled up to `length`, at `start`; return their last hidden states (len(ids), D)."""
        ...

    def logits(self, hidden_MD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (M, V) of at most 32 hidden states."""
        ...


class Scorer:
    """Reads sequences one after the other; what two in a row have in common at the beginning is read once."""

    def __init__(self, reader: Reader, max_tokens: int) -> None:
        """Take a reader that has room for sequences of at most `max_tokens`."""
        self.max_tokens = max_tokens
        self._reader = reader
        self._read_ids: list[int] = []

    def score(self, ids: Sequence[int], num_targets: int) -> Scored:
        """Return the log-probabilities of the last `num_targets` of `ids`, each after all before it.

        Raises:
            WeightError: The model computes NaN or infinity.
        """
        assert 1 <= num_targets < len(ids) <= self.max_tokens + 1, (num_targets, len(ids), self.max_tokens)
        hidden_TD = self._hidden(list(ids[:-1]), num_targets)
        log_probs, is_likeliest = np.empty(num_targets), np.empty(num_targets, np.bool_)
        targets = ids[-num_targets:]
        for start in range(0, num_targets, HEAD_ROWS):
            logits_MV = self._reader.logits(hidden_TD[start : start + HEAD_ROWS])
            for row, logits_V in enumerate(logits_MV):
                target = targets[start + row]
                log_probs[start + row], is_likeliest[start + row] = _log_prob(logits_V, target)
        return Scored(log_probs_T=log_probs, is_likeliest_T=is_likeliest)

    def _hidden(self, ids: list[int], num_last: int) -> NDArray[np.float32]:
        """Return the last hidden states (num_last, D) of the end of `ids`."""
        reader = self._reader
        pairs = zip(self._read_ids, ids, strict=False)
        known = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self._read_ids), len(ids)))
        self._read_ids = ids
        wanted, parts = len(ids) - num_last, []
        first = min(known, wanted)
        for start, length in cut(len(ids), first - first % reader.piece_unit, reader.pieces):
            hidden_MD = reader.hidden(ids[start : start + length], start, length)
            parts.append(hidden_MD[max(wanted - start, 0) :])
        return np.concatenate(parts)


def _log_prob(logits_V: NDArray[np.float32], target: int) -> tuple[float, bool]:
    """Return the log-probability of `target`, summed in float64, and whether it is the likeliest token."""
    likeliest = int(logits_V.argmax())  # of NaN, when there is one
    most = logits_V[likeliest]
    if not np.isfinite(most):
        raise WeightError("the model computes NaN or infinity; check its weights with qwen3-model verify")
    total = np.exp(logits_V - most).sum(dtype=np.float64)
    return float(logits_V[target]) - float(most) - float(np.log(total)), likeliest == target
