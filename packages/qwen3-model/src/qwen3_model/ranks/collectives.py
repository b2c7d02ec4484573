"""What ranks exchange, in a group inside a compiled graph or between two: the seam between devices.

A CPU has one collective that works in a group and in a graph, the sum; the rest is made of it. Ascend has
them all.

The gradient of `gather_rows` is `scatter_rows`, and the other way round. Ascend's are differentiated by
MindSpore, whose recomputation of whole layers cannot follow a collective in a hand-written `bprop`. The sum's
gradient depends on what the ranks do with it: `shards` says it.

T ranks of the group, R rows of one rank, D width.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore._c_expression import GroupOptions
from mindspore.communication import create_group

WORLD = "hccl_world_group"
"""MindSpore's name on Ascend of the group of all ranks."""


@ms.jit_class
class Alone:
    """A group of one: nothing to exchange."""

    size, index = 1, 0

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        return x

    def gather_rows(self, x_RD: Tensor) -> Tensor:
        """Return all ranks' rows in their order, (T * R, D)."""
        return x_RD

    def scatter_rows(self, x_TRD: Tensor) -> Tensor:
        """Return this rank's R rows of the sum of (T * R, D)."""
        return x_TRD


@ms.jit_class
class PortableGroup:
    """Everything out of sums, which costs T times the traffic."""

    def __init__(self, name: str, ranks: Sequence[int], rank: int) -> None:
        self.size, self.index = len(ranks), ranks.index(rank)
        self._sum = ops.AllReduce(group=name)
        rows = _RowSums(self._sum, self.size, self.index)
        self._gather, self._scatter = _GatherBySum(rows), _ScatterBySum(rows)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        return self._sum(x)

    def gather_rows(self, x_RD: Tensor) -> Tensor:
        """Return all ranks' rows in their order, (T * R, D)."""
        return self._gather(x_RD)

    def scatter_rows(self, x_TRD: Tensor) -> Tensor:
        """Return this rank's R rows of the sum of (T * R, D)."""
        return self._scatter(x_TRD)


@ms.jit_class
class _RowSums:
    """Gather and scatter of rows out of one sum each."""

    def __init__(self, total: ops.AllReduce, size: int, index: int) -> None:
        self._sum, self._size, self._index = total, size, index
        self._join, self._zeros = ops.Concat(0), ops.ZerosLike()

    def gather(self, x_RD: Tensor) -> Tensor:
        nothing = self._zeros(x_RD)
        parts: tuple[Tensor, ...] = ()
        for i in range(self._size):
            parts = (*parts, x_RD if i == self._index else nothing)
        return self._sum(self._join(parts))

    def scatter(self, x_TRD: Tensor) -> Tensor:
        rows = x_TRD.shape[0] // self._size
        return self._sum(x_TRD)[self._index * rows : (self._index + 1) * rows]


class _GatherBySum(nn.Cell):
    def __init__(self, rows: _RowSums) -> None:
        super().__init__(auto_prefix=False)
        self.rows = rows

    def construct(self, x_RD: Tensor) -> Tensor:
        return self.rows.gather(x_RD)

    def bprop(self, x_RD: Tensor, out_TRD: Tensor, grad_TRD: Tensor) -> tuple:
        return (self.rows.scatter(grad_TRD),)


class _ScatterBySum(nn.Cell):
    def __init__(self, rows: _RowSums) -> None:
        super().__init__(auto_prefix=False)
        self.rows = rows

    def construct(self, x_TRD: Tensor) -> Tensor:
        return self.rows.scatter(x_TRD)

    def bprop(self, x_TRD: Tensor, out_RD: Tensor, grad_RD: Tensor) -> tuple:
        return (self.rows.gather(grad_RD),)


@ms.jit_class
class AscendGroup:
    """The device's own collectives."""

    def __init__(self, name: str, ranks: Sequence[int], rank: int) -> None:
        self.size, self.index = len(ranks), ranks.index(rank)
        self._sum = ops.AllReduce(group=name)
        self._gather, self._scatter = ops.AllGather(group=name), ops.ReduceScatter(group=name)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        return self._sum(x)

    def gather_rows(self, x_RD: Tensor) -> Tensor:
        """Return all ranks' rows in their order, (T * R, D)."""
        return self._gather(x_RD)

    def scatter_rows(self, x_TRD: Tensor) -> Tensor:
        """Return this rank's R rows of the sum of (T * R, D)."""
        return self._scatter(x_TRD)


Group = Alone | PortableGroup | AscendGroup


def make_group(
    device_target: str,
    name: str,
    ranks: Sequence[int],
    rank: int,
    *,
    is_world: bool = False,
    buffer_mib: int | None = None,
) -> Group:
    """Return the group of `ranks`, of which `rank` is this one; every member must call this, nobody else.

    Args:
        device_target: CPU or Ascend.
        name: The same for all members, and for no other group of a member.
        ranks: In the order in which their rows are gathered.
        rank: This one.
        is_world: These are all ranks of the job in their order. Ascend then takes the group that `init` has
            made: each further one takes buffers of the device.
        buffer_mib: MiB of each of HCCL's two buffers of the group; HCCL_BUFFSIZE when left out.
    """
    if len(ranks) == 1:
        return Alone()
    if device_target != "Ascend":
        create_group(name, list(ranks))
        return PortableGroup(name, ranks, rank)
    if is_world:
        return AscendGroup(WORLD, ranks, rank)
    _create_on_ascend(name, ranks, buffer_mib)
    return AscendGroup(name, ranks, rank)


def _create_on_ascend(name: str, ranks: Sequence[int], buffer_mib: int | None) -> None:
    if buffer_mib is None:
        create_group(name, list(ranks))
        return
    options = GroupOptions()
    options.hccl_config = {"hccl_buffer_size": buffer_mib}
    create_group(name, list(ranks), options)


class PortableLink(nn.Cell):
    """Hand tensors to one other rank and back: a sum to which the receiver gives zeros."""

    def __init__(self, name: str, ranks: Sequence[int], rank: int) -> None:
        super().__init__(auto_prefix=False)
        self._sum = ops.AllReduce(group=name)

    @ms.jit
    def construct(self, x: Tensor) -> Tensor:
        return self._sum(x)

    def send(self, x: Tensor) -> None:
        """Wait for the other rank to call `receive`, and hand it `x`."""
        self(x)

    def receive(self, shape: tuple[int, ...], dtype: ms.Type) -> Tensor:
        """Return what the other rank sends."""
        return self(Tensor(np.zeros(shape, np.float32), dtype))


class AscendLink:
    """The device's own Send and Receive, each in a graph as MindSpore's documentation has them."""

    def __init__(self, name: str, ranks: Sequence[int], rank: int) -> None:
        self.name, self.other = name, 1 - ranks.index(rank)
        self._send = _Send(name, self.other)
        self._receive: dict[tuple, _Receive] = {}
        # Ascend's kernel is not initialised without an input; it reads nothing of it.
        self._start = Tensor(np.zeros(1, np.float32))

    def send(self, x: Tensor) -> None:
        """Hand `x` to the other rank."""
        self._send(x)

    def receive(self, shape: tuple[int, ...], dtype: ms.Type) -> Tensor:
        """Return what the other rank sends."""
        kind = (*shape, dtype)
        if kind not in self._receive:
            self._receive[kind] = _Receive(self.name, self.other, shape, dtype)
        return self._receive[kind](self._start)


class _Send(nn.Cell):
    def __init__(self, name: str, other: int) -> None:
        super().__init__(auto_prefix=False)
        self._give = ops.Send(sr_tag=0, dest_rank=other, group=name)

    @ms.jit
    def construct(self, x: Tensor) -> Tensor:
        return ops.depend(x, self._give(x))


class _Receive(nn.Cell):
    def __init__(self, name: str, other: int, shape: tuple[int, ...], dtype: ms.Type) -> None:
        super().__init__(auto_prefix=False)
        self._take = ops.Receive(sr_tag=0, src_rank=other, shape=list(shape), dtype=dtype, group=name)

    @ms.jit
    def construct(self, start: Tensor) -> Tensor:
        return self._take(start)


Link = PortableLink | AscendLink


def make_link(device_target: str, name: str, ranks: Sequence[int], rank: int, buffer_mib: int) -> Link:
    """Return the link between two `ranks`, of which `rank` is this one; both must call this, nobody else.

    On Ascend its group has two buffers of `buffer_mib` MiB.
    """
    if device_target != "Ascend":
        create_group(name, list(ranks))
        return PortableLink(name, ranks, rank)
    _create_on_ascend(name, ranks, buffer_mib)
    return AscendLink(name, ranks, rank)
