"""How MindSpore adds up the gradients of a value that a graph uses more than once.

It takes AddN, for which Ascend has no aclnn kernel: the older one is compiled on the device's host at first
use. The sum of two by Add is the same number.
"""

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops.composite.multitype_ops import add_impl

FLOATS = (ms.float32, ms.bfloat16, ms.float16)


def add_gradients_by_add() -> None:
    """Let graphs that are compiled from now on add gradients by Add; again it changes nothing."""
    # MindSpore has no public switch. A version without this name keeps its AddN.
    table = getattr(add_impl, "_add_backward", None)
    if table is not None and _add not in [function for _, function in table.entries]:
        table.register("Tensor", "Tensor")(_add)


def _add(x: Tensor, y: Tensor) -> Tensor:
    # Those of numbers and truths are zeros, which nothing reads; Add does not take them all.
    return ops.add(x, y) if x.dtype in FLOATS else ops.addn((x, y))
