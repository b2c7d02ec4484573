"""Compare two sets of tensors by name, shape, dtype and value."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qwen3_ckpt.sources.difference import largest_difference
from qwen3_model.checkpoints.rows import LazyTensor
from qwen3_model.checkpoints.safetensors_file import FLOAT_DTYPES


@dataclass(frozen=True, slots=True)
class Difference:
    """One tensor that is not the same in both."""

    name: str
    what: str
    """A phrase: missing, other shape, other dtype, or the largest difference and where it is."""
    kind: str
    """What the phrase is about: names, shapes, types or values."""


def differences(
    left: dict[str, LazyTensor], right: dict[str, LazyTensor], *, tolerance: float = 0.0
) -> Iterator[Difference]:
    """Yield the tensors that differ by more than `tolerance` in any element, in name order.

    Float tensors of different dtypes are compared by value, and named for the dtype only where values agree.
    """
    for name in sorted(left.keys() | right.keys()):
        if name not in right:
            yield Difference(name, "only in the first", "names")
        elif name not in left:
            yield Difference(name, "only in the second", "names")
        elif found := _difference(left[name], right[name], tolerance):
            yield Difference(name, *found)


def verdict(
    found: Sequence[Difference], left: Mapping[str, LazyTensor], right: Mapping[str, LazyTensor]
) -> str:
    """Return one line that says whether the two are the same model, and if not, in what they differ."""
    if not found:
        return f"{len(left)} tensors are equal"
    of = f"{len(found)} of {len(left.keys() | right.keys())} tensors differ"
    kinds = [kind for kind in ("names", "shapes", "values", "types") if any(d.kind == kind for d in found)]
    if kinds == ["types"]:
        return f"{of}, in their types alone: the values agree"
    if len({d.kind for d in found}) == 1 and kinds == ["names"] and not left.keys() & right.keys():
        return f"{of}: the two have no tensor in common, so their names are of different forms or models"
    return f"{of}, in {', '.join(kinds)}"


def _difference(a: LazyTensor, b: LazyTensor, tolerance: float) -> tuple[str, str] | None:
    """Return a phrase and its kind, or None."""
    if a.plan.shape != b.plan.shape:
        return f"shape {a.plan.shape} and {b.plan.shape}", "shapes"
    if (a.plan.dtype in FLOAT_DTYPES) != (b.plan.dtype in FLOAT_DTYPES):
        return f"dtype {a.plan.dtype} and {b.plan.dtype}", "values"
    largest, offset = largest_difference(a, b)
    if largest > tolerance:
        index = tuple(int(i) for i in np.unravel_index(offset, a.plan.shape or (1,)))
        return f"largest difference {largest:.6g} at {index}", "values"
    if a.plan.dtype != b.plan.dtype:
        return f"dtype {a.plan.dtype} and {b.plan.dtype}, values agree", "types"
    return None
