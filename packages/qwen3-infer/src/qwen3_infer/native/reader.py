"""One sequence in native kernels, for scoring."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3_infer.native.network import NativeNetwork
from qwen3_infer.steps.pieces import PIECES


class NativeReader:
    """What `steps.score_engine.Reader` asks for."""

    pieces: tuple[int, ...] = PIECES
    piece_unit = 1

    def __init__(self, network: NativeNetwork) -> None:
        """Take a network whose cache the sequence has alone."""
        self._network = network

    def hidden(self, ids: Sequence[int], start: int, length: int) -> NDArray[np.float32]:
        """Read `ids` at `start`; return their last hidden states (len(ids), D)."""
        return self._network.hidden_of_row(0, ids, start)

    def logits(self, hidden_MD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (M, V) of hidden states."""
        return self._network.logits(hidden_MD)
