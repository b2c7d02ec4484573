"""The order of a blend in compiled code, for data of many samples; numpy makes the same, slower."""

import ctypes
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_model.command.private_files import cache_home
from qwen3_model.device.native_build import FLAGS, BuildError, compiled_library

SOURCE = Path(__file__).parents[1] / "native" / "blend_order.cc"
Order = tuple[NDArray[np.int32], NDArray[np.int64]]
Serve = Callable[[NDArray[np.float64], NDArray[np.int64] | None, NDArray[np.int64], int, int], Order]
"""From shares, samples of each file or None, those served so far (changed), the first sample and a count."""


@lru_cache
def compiled_serve() -> Serve | None:
    """Return what serves samples in order; None where nothing can be compiled."""
    try:
        flags = (*FLAGS, "-ffp-contract=off")
        library = compiled_library([SOURCE], cache_home({}) / "qwen3-train", flags=flags)
    except (BuildError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    function = ctypes.CDLL(str(library)).qwen3_blend_order
    function.restype, long, pointer = None, ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [pointer, pointer, long, long, long, pointer, pointer, pointer]

    def serve(
        shares: NDArray[np.float64],
        left: NDArray[np.int64] | None,
        served: NDArray[np.int64],
        first: int,
        count: int,
    ) -> Order:
        files, numbers = np.empty(count, np.int32), np.empty(count, np.int64)
        limits = None if left is None else left.ctypes.data
        function(
            shares.ctypes.data, limits, len(shares), first, count, served.ctypes.data, files.ctypes.data,
            numbers.ctypes.data,
        )  # fmt: skip
        return files, numbers

    return serve
