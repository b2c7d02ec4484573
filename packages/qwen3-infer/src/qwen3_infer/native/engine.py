"""The model in native kernels behind two calls: read a piece of a prompt, add a token to some requests.

B requests in a batch, L length, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3_infer.native.chooser import NativeChooser
from qwen3_infer.native.network import NativeNetwork
from qwen3_infer.steps.pieces import ALIGN, PIECES, round_up


class NativeEngine:
    """Prefill and decoding on this process's threads; `MindSporeEngine` has the same methods.

    A request has a region of the cache as long as it needs.
    """

    unit = ALIGN
    pieces: tuple[int, ...] = PIECES
    shares_beginnings = True
    """What was read for one prompt is used for the next: bits do not depend on how a prompt was cut."""

    def __init__(
        self, network: NativeNetwork, chooser: NativeChooser, num_rows: int, num_tokens: int
    ) -> None:
        """Take a network with a cache of `num_tokens`, for `num_rows` requests at once."""
        self._network, self.chooser = network, chooser
        self.num_rows, self.num_tokens = num_rows, num_tokens
        self.longest = num_tokens
        """Most tokens of one request."""

    def read(self, start: int, ids: Sequence[int], position: int, length: int) -> NDArray[np.float32]:
        """Add `ids`, up to `length` of them, to the region at `start`, from `position` on.

        Returns:
            The logits after the last of `ids`, (V,).
        """
        return self._network.logits(self._network.hidden_of_row(start, ids, position, 1))[0]

    def read_all(self, start: int, ids: Sequence[int], position: int, length: int) -> NDArray[np.float32]:
        """Do the same, and return the logits after each of `ids`, float32 (len(ids), V)."""
        return self._network.logits(self._network.hidden_of_row(start, ids, position))

    def decode(
        self, starts_B: NDArray[np.int32], tokens_B: NDArray[np.int32], positions_B: NDArray[np.int32]
    ) -> list[NDArray[np.float32]]:
        """Add one token to each of B regions, at its position; return the logits after each, (V,)."""
        hidden_BD = self._network.hidden(tokens_B[:, None], positions_B[:, None], starts_B)
        return list(self._network.logits(hidden_BD))

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` of one region to another."""
        self._network.copy(source, target, num_tokens)

    def warm_up(self) -> None:
        """Nothing is compiled for a shape."""


def cache_tokens(num_rows: int, context_tokens: int, num_tokens: int | None) -> int:
    """Return how many tokens a cache of regions of any length has.

    Args:
        num_rows: Most requests that run at once.
        context_tokens: The longest, prompt and completion together.
        num_tokens: What is asked for; enough for `num_rows` of the longest when None.
    """
    longest = round_up(context_tokens, ALIGN)
    wanted = num_rows * longest if num_tokens is None else num_tokens
    return round_up(max(wanted, longest), ALIGN)
