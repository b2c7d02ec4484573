"""What sampling asks of all logits, on all threads."""

import ctypes
from pathlib import Path

import numpy as np

from qwen3_infer.sampling.sampling import BLOCK, GROUPS


class NativeSums:
    """Adds up weights and finds the largest, as `sampling.sampling.Sums` says."""

    def __init__(self, library: Path | str) -> None:
        """Take the functions of `library`, which `native.build` has made."""
        functions = ctypes.CDLL(str(library))
        self._sums, self._maxima = functions.qwen3_block_sums, functions.qwen3_group_maxima
        self._above = functions.qwen3_above
        self._above.restype = ctypes.c_int64
        self._above.argtypes = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
        self._sums.restype = self._maxima.restype = None
        self._sums.argtypes = (
            ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_float, ctypes.c_int64, ctypes.c_void_p,
        )  # fmt: skip
        self._maxima.argtypes = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p

    def weights(self, logits_V: np.ndarray, highest: float, temperature: float) -> np.ndarray:
        """Return the sum of the weights of each block of BLOCK logits, float64."""
        logits_V = np.ascontiguousarray(logits_V, np.float32)
        sums = np.empty(-(-len(logits_V) // BLOCK))
        self._sums(logits_V.ctypes.data, len(logits_V), highest, temperature, BLOCK, sums.ctypes.data)
        return sums

    def maxima(self, logits_V: np.ndarray) -> np.ndarray:
        """Return the largest of each of the GROUPS of every BLOCK of logits, float32."""
        logits_V = np.ascontiguousarray(logits_V, np.float32)
        maxima = np.empty(-(-len(logits_V) // BLOCK) * GROUPS, np.float32)
        self._maxima(logits_V.ctypes.data, len(logits_V), BLOCK, maxima.ctypes.data)
        return maxima

    def above(self, logits_V: np.ndarray, floor: float) -> np.ndarray:
        """Return the ids of the logits that reach a floor, int64, in their order."""
        logits_V = np.ascontiguousarray(logits_V, np.float32)
        ids = np.empty(len(logits_V) + 1, np.int64)
        return ids[: self._above(logits_V.ctypes.data, len(logits_V), floor, ids.ctypes.data)].copy()
