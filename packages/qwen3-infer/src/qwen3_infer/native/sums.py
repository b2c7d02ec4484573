"""The sums that sampling asks of all logits, on all threads."""

import ctypes
from pathlib import Path

import numpy as np

from qwen3_infer.engine.sampling import BLOCK


class BlockSums:
    """Adds up weights as `engine.sampling.WeightSums` says."""

    def __init__(self, library: Path | str) -> None:
        """Take the function of `library`, which `native.build` has made."""
        self._sums = ctypes.CDLL(str(library)).qwen3_block_sums
        self._sums.restype = None
        self._sums.argtypes = (
            ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_float, ctypes.c_int64, ctypes.c_void_p,
        )  # fmt: skip

    def __call__(self, logits_V: np.ndarray, highest: float, temperature: float) -> np.ndarray:
        """Return the sum of each block of BLOCK logits, float64."""
        logits_V = np.ascontiguousarray(logits_V, np.float32)
        sums = np.empty(-(-len(logits_V) // BLOCK))
        self._sums(logits_V.ctypes.data, len(logits_V), highest, temperature, BLOCK, sums.ctypes.data)
        return sums
