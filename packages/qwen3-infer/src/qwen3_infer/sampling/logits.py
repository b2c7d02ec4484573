"""Logits of a step: on a device they stay there, and the likeliest of each row come to the host.

R rows, V vocabulary, C candidates.
"""

from typing import Protocol

import numpy as np

from qwen3_infer.sampling.sampling import Sampling, choose_among

NUM_CANDIDATES = 64
"""Likeliest tokens of a row that come to the host at once; 256 bytes and as many of ids."""


class Values(Protocol):
    """Numbers that may have to be fetched."""

    def asnumpy(self) -> np.ndarray:
        """Return them."""
        ...


class LikeliestRows:
    """What a step has returned; nothing is fetched before it is asked for."""

    def __init__(self, logits_RV: "Values", values_RC: "Values", ids_RC: "Values") -> None:
        self._device = logits_RV, values_RC, ids_RC
        self._whole_RV: np.ndarray | None = None
        self._likeliest: tuple[np.ndarray, np.ndarray] | None = None

    def __getitem__(self, row: int) -> "Likeliest":
        return Likeliest(self, row)

    def whole(self, row: int) -> np.ndarray:
        """Return all logits of a row, float32 (V,); those of all rows come over together."""
        if self._whole_RV is None:
            self._whole_RV = self._device[0].asnumpy()
        return self._whole_RV[row]

    def likeliest(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest logits of a row and their ids, (C,)."""
        if self._likeliest is None:
            self._likeliest = self._device[1].asnumpy(), self._device[2].asnumpy()
        return self._likeliest[0][row], self._likeliest[1][row]


class Likeliest:
    """One row's logits, of which most may never leave the device."""

    def __init__(self, rows: LikeliestRows, row: int) -> None:
        self._rows, self._row = rows, row

    def choose(self, sampling: Sampling, rng: np.random.Generator) -> int | None:
        """Return the next token if the candidates are enough for it; None, and no number drawn, if not."""
        values_C, ids_C = self._rows.likeliest(self._row)
        return choose_among(values_C, ids_C, sampling, rng)

    def likeliest(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest logits and their ids, (C,)."""
        return self._rows.likeliest(self._row)

    def whole(self) -> np.ndarray:
        """Return all logits, float32 (V,)."""
        return self._rows.whole(self._row)


Logits = np.ndarray | Likeliest
"""One row's logits: float32 (V,), or what can be asked for them."""
