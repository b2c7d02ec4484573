"""How far two tensors are apart."""

import numpy as np

from qwen3_model.checkpoints.rows import LazyTensor, row_windows
from qwen3_model.checkpoints.safetensors_file import FLOAT_DTYPES, NUMPY_DTYPES, to_float32

# Each becomes several arrays of float64.
PIECE_BYTES = 2 << 20


def largest_difference(a: LazyTensor, b: LazyTensor) -> tuple[float, int]:
    """Return the largest difference of two tensors of one shape and the flat index where it is first.

    Two NaN are equal; one NaN is infinitely far from any number.
    """
    largest, offset = 0.0, 0
    wider = a.rows if a.rows.row_bytes >= b.rows.row_bytes else b.rows
    for start, stop in row_windows(wider, PIECE_BYTES):
        x, y = _values(a, start, stop), _values(b, start, stop)
        with np.errstate(invalid="ignore"):
            gap = np.where(np.isnan(x) & np.isnan(y) | (x == y), 0.0, np.abs(x - y)).reshape(-1)
        gap[np.isnan(gap)] = np.inf
        if gap.size and gap.max() > largest:
            largest, offset = float(gap.max()), start * (gap.size // (stop - start)) + int(gap.argmax())
    return largest, offset


def _values(tensor: LazyTensor, start: int, stop: int) -> np.ndarray:
    raw = np.ascontiguousarray(tensor.rows.read(start, stop)).view(NUMPY_DTYPES[tensor.plan.dtype])
    if tensor.plan.dtype in FLOAT_DTYPES:
        return to_float32(raw, tensor.plan.dtype).astype(np.float64)
    return raw.astype(np.float64)
