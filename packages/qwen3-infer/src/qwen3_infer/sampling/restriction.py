"""Which tokens may not follow, whatever their logits are.

V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Restriction:
    """What a grammar and a least length forbid."""

    allowed: NDArray[np.uint32] | None = None
    """Bit i % 32 of number i // 32 says whether token i may follow; those behind may not. None for all."""
    forbidden: tuple[int, ...] = ()
    """Tokens that may not follow either, unless nothing else may."""

    def apply(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits with minus infinity for tokens that may not follow; the input is not changed."""
        if self.allowed is not None:
            bits = np.unpackbits(self.allowed.view(np.uint8), bitorder="little")[: len(logits_V)]
            is_allowed_V = np.zeros(len(logits_V), np.bool_)
            is_allowed_V[: len(bits)] = bits
            logits_V = np.where(is_allowed_V, logits_V, np.float32(-np.inf))
        if self.forbidden:
            others_V = logits_V.copy()
            others_V[list(self.forbidden)] = -np.inf
            if np.isfinite(others_V.max()):
                logits_V = others_V
        return logits_V
