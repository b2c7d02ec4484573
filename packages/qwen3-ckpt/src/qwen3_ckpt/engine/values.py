"""Values that are NaN or infinite, seen where they pass through memory anyway.

What the kernel copies from file to file is not looked at; `verify` reads every element.
"""

from collections.abc import Iterator

from qwen3_ckpt.engine.parallel import Count
from qwen3_model.checkpoints.byte_writer import FileRange
from qwen3_model.checkpoints.rows import Bytes, LazyTensor
from qwen3_model.checkpoints.safetensors_file import FLOAT_DTYPES
from qwen3_model.checkpoints.verify import is_finite

LARGEST_F16 = 65504


class ValueCheck:
    """Collects the tensors in which such a value was seen."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def pieces(self, tensor: LazyTensor, count: Count) -> Iterator[Bytes | FileRange]:
        """Yield a tensor's pieces to write, and look at those that are in memory; see `LazyTensor.pieces`."""
        plan = tensor.plan
        for piece in tensor.pieces(count):
            if (
                not isinstance(piece, FileRange)
                and plan.dtype in FLOAT_DTYPES
                and plan.name not in self._found
                and not is_finite(piece, plan.dtype)
            ):
                self._found[plan.name] = plan.dtype
            yield piece

    def notes(self) -> list[str]:
        """Return a sentence about them, or nothing."""
        if not self._found:
            return []
        names, limit = sorted(self._found), ""
        if "F16" in self._found.values():
            limit = f"; a value above {LARGEST_F16} becomes infinite in fp16"
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return [f"{names[0]}{more} was written with values that are NaN or infinite{limit}"]
