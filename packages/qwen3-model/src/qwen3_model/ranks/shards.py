"""Tensor parallelism as the model sees it: where rows enter and leave a region whose weights are split.

Inside the region each rank has all rows and its share of the columns; outside it has all rows whole, or with
sequence parallelism its share of the rows (Shoeybi et al. 2019, section 3; Korthikanti et al. 2022, 4.2).

`Copy` sums gradients, `Reduce` sums values. With sequence parallelism rows are gathered and their gradients
scattered on entering, and the other way round on leaving: the group's own pair, gradients included.

Weights that all ranks hold whole but use on a part of the rows or columns (the norms of queries and keys;
with sequence parallelism all norms; the half of an adapter whose other half is split) get partial gradients:
`is_partial` names them, the optimizer step sums them.
"""

from fnmatch import fnmatchcase

import mindspore as ms
from mindspore import Tensor, nn

from qwen3_model.ranks.collectives import Alone, Group
from qwen3_model.ranks.layout import placement

ALWAYS_PARTIAL = ("*.self_attn.q_norm.weight", "*.self_attn.k_norm.weight")
ROW_WISE = "*norm.weight"
ADAPTER = "*.lora_[AB].weight"


@ms.jit_class
class Whole:
    """No tensor parallelism."""

    size, index = 1, 0
    splits_rows = False
    group = Alone()

    def enter(self, x_MD: Tensor) -> Tensor:
        """Return the rows for a split region."""
        return x_MD

    def leave(self, x_MD: Tensor) -> Tensor:
        """Return the rows after a split region, whose parts are added up."""
        return x_MD

    def is_partial(self, name: str) -> bool:
        """Return whether the gradient of `name` is only this rank's part."""
        return False


@ms.jit_class
class Shards:
    """One rank of a tensor-parallel group."""

    def __init__(self, group: Group, *, sequence_parallel: bool) -> None:
        self.group, self.size, self.index = group, group.size, group.index
        self.splits_rows = sequence_parallel
        self._copy, self._reduce = Copy(group), Reduce(group)

    def enter(self, x_MD: Tensor) -> Tensor:
        """Return the rows for a split region."""
        return self.group.gather_rows(x_MD) if self.splits_rows else self._copy(x_MD)

    def leave(self, x_MD: Tensor) -> Tensor:
        """Return the rows after a split region, whose parts are added up."""
        return self.group.scatter_rows(x_MD) if self.splits_rows else self._reduce(x_MD)

    def is_partial(self, name: str) -> bool:
        """Return whether the gradient of `name` is only this rank's part."""
        if fnmatchcase(name, ADAPTER):
            return "tp" not in placement(name)
        patterns = (ROW_WISE,) if self.splits_rows else ALWAYS_PARTIAL
        return any(fnmatchcase(name, pattern) for pattern in patterns)


Tp = Whole | Shards


class Copy(nn.Cell):
    """Hand the same rows to every rank."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    def construct(self, x_MD: Tensor) -> Tensor:
        return x_MD

    def bprop(self, x_MD: Tensor, out_MD: Tensor, grad_MD: Tensor) -> tuple:
        return (self.group.sum(grad_MD),)


class Reduce(nn.Cell):
    """Add up what the ranks have."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group

    def construct(self, x_MD: Tensor) -> Tensor:
        return self.group.sum(x_MD)

    def bprop(self, x_MD: Tensor, out_MD: Tensor, grad_MD: Tensor) -> tuple:
        return (grad_MD,)
