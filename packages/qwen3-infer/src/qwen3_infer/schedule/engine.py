"""What the scheduler asks of an engine: the model behind a cache of tokens.

B requests in a batch, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from qwen3_infer.sampling.logits import Logits


class Engine(Protocol):
    """A model with a cache of tokens, in which each request has a region."""

    num_rows: int
    """Most requests that run at once."""
    num_tokens: int
    """Room of the cache."""
    unit: int
    """Regions begin at multiples of this and are multiples of it."""
    pieces: tuple[int, ...]
    """Lengths that prompts are read in, the longest first."""
    shares_beginnings: bool
    """Whether what was read for one prompt may be used for another that begins alike."""

    def read(self, start: int, ids: Sequence[int], position: int, length: int) -> Logits:
        """Add `ids` to the region at `start`, from `position` on, filled up to `length`.

        Returns:
            The logits after the last of `ids`.
        """
        ...

    def read_all(self, start: int, ids: Sequence[int], position: int, length: int) -> np.ndarray:
        """Do the same, and return the logits after each of `ids`, float32 (len(ids), V)."""
        ...

    def decode(self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray) -> Sequence[Logits]:
        """Add one token to each of B regions, at its position; return the logits after each."""
        ...

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens`, a multiple of the shortest piece, of one region to another."""
        ...
