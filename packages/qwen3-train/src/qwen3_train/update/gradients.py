"""Gradients of a step from those that each rank has: summed over ranks, with what clips their common norm.

What is summed: over replicas all, in the order in which the backward pass ends, so that a sum can begin while
it goes on; then over shards the gradients of weights that each uses in part, and over the two ends of a
pipeline those of a tied embedding. With ZeRO-1 each replica gets its own rows of the sum alone. Tensors
travel in buckets, so that small ones cost no latency of their own. Each weight counts once in the norm,
whatever the layout.
"""

import math
from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from qwen3_model.network.kernels.seam import Kernels
from qwen3_model.ranks.collectives import Group
from qwen3_train.layout.stages import is_shared_out, piece_shape
from qwen3_train.parallel.grid import Grid
from qwen3_train.update.optimizer import ClipScale, SumOfSquares

BUCKET_BYTES = 64 << 20
BLOCK = 24
"""Tensors that one loop of a graph goes over: each turn nests in the one before, which MindSpore limits."""


Finished = tuple[tuple[Tensor, ...], Tensor | None, Tensor, Tensor]


class OwnGradients(nn.Cell):
    """One process: nothing to sum.

    Args of the call:
        gradients: One per weight, float32.
        loss: float32 scalar.

    Returns:
        The gradients, the scale that clips them (None for none), their norm before it, the loss.
    """

    def __init__(self, num_weights: int, max_norm: float | None, kernels: Kernels) -> None:
        super().__init__(auto_prefix=False)
        self.squares, self.clip = SumOfSquares((True,) * num_weights, kernels), ClipScale(max_norm)
        self.hands_back = (True,) * num_weights
        """Which gradients come back as the tensors that were given."""

    def construct(self, gradients: tuple[Tensor, ...], loss: Tensor) -> Finished:
        norm = ops.sqrt(self.squares(gradients).reshape(()))
        return gradients, self.clip(norm), norm, loss


class SharedGradients(nn.Cell):
    """Many ranks: the same call, with gradients and loss of all of them.

    With `shares_moments` a gradient that the replicas share out comes back as this replica's rows. With
    `are_sums` the gradients are sums over micro-batches, and those of the others went through `SumReplicas`.
    """

    def __init__(
        self,
        weights: Mapping[str, Parameter],
        grid: Grid,
        max_norm: float | None,
        kernels: Kernels,
        *,
        shares_moments: bool = False,
        are_sums: bool = False,
    ) -> None:
        super().__init__(auto_prefix=False)
        names, shapes = list(weights), [tuple(weight.shape) for weight in weights.values()]
        dp, cut = grid.replicas.size, _cut(weights, grid, shares_moments=shares_moments)
        own = [piece_shape(s, dp) if is_cut else s for s, is_cut in zip(shapes, cut, strict=True)]
        # The backward pass ends with the first weights.
        last_first = range(len(names) - 1, -1, -1)
        partial = [i for i in last_first if grid.tp.is_partial(names[i])]
        tied = [i for i in last_first if grid.ends.size > 1 and "embed_tokens" in names[i]]
        shared = [i for i in last_first if cut[i]]
        whole = [i for i in last_first if not (cut[i] or are_sums)]
        self.own_rows = BucketSum(grid.replicas, shared, shapes, scatters=True)
        self.replicas = BucketSum(grid.replicas, whole, shapes)
        self.shards, self.ends = BucketSum(grid.tp.group, partial, own), BucketSum(grid.ends, tied, own)
        new = {*shared, *whole, *partial, *tied}
        self.hands_back = tuple(i not in new for i in range(len(names)))
        self.world, self.has_loss = grid.world, grid.has_loss()
        counts = [grid.counts(name, is_cut=is_cut) for name, is_cut in zip(names, cut, strict=True)]
        self.squares, self.clip = SumOfSquares(counts, kernels), ClipScale(max_norm)
        self.join, self.split = ops.Concat(0), ops.auto_generate.SplitWithSize()
        self.nothing = Tensor([0.0], ms.float32)

    def construct(self, gradients: tuple[Tensor, ...], loss: Tensor) -> Finished:
        gradients, last = self.own_rows(gradients, self.nothing)
        gradients, last = self.replicas(gradients, last)
        # A group's sums must come in the same order on all of its ranks: these after the backward pass's own.
        gradients, last = self.shards(gradients, ops.depend(last, gradients))
        gradients, last = self.ends(gradients, last)
        # Behind the last bucket in any case, so that all ranks exchange in the same order.
        square = ops.depend(self.squares(gradients), last)
        own_loss = loss.reshape(-1) if self.has_loss else self.nothing
        square, loss = self.split(self.world.sum(self.join((square, own_loss))), (1, 1), 0)
        norm = ops.sqrt(square.reshape(()))
        return gradients, self.clip(norm), norm, loss.reshape(())


class SumReplicas(nn.Cell):
    """Replace sums over micro-batches by their sums over replicas, but for those that are shared out.

    A graph of its own, in which no more than a bucket of them is there twice.
    """

    def __init__(
        self,
        weights: Mapping[str, Parameter],
        sums: ParameterTuple,
        grid: Grid,
        kernels: Kernels,
        shares_moments: bool,
    ) -> None:
        super().__init__(auto_prefix=False)
        cut = _cut(weights, grid, shares_moments=shares_moments)
        whole = [i for i in range(len(cut) - 1, -1, -1) if not cut[i]]
        self.bucket_sum = BucketSum(grid.replicas, whole, [tuple(each.shape) for each in sums])
        self.sums, self.kernels = sums, kernels
        self.done = Tensor(np.zeros(1, np.float32))

    @ms.jit
    def construct(self):  # type: ignore[no-untyped-def]  # noqa: ANN201
        last = self.done * 1.0
        for number in range(len(self.bucket_sum.buckets)):
            bucket = self.bucket_sum.buckets[number]
            parts = self.bucket_sum.exchange(number, self.sums, last)
            for k in range(len(bucket)):
                last = ops.depend(last, self.kernels.assign(self.sums[bucket[k]], parts[k]))
        return last


def _cut(weights: Mapping[str, Parameter], grid: Grid, *, shares_moments: bool) -> list[bool]:
    """Say for each weight whether the replicas share out its moments."""
    shapes = [tuple(weight.shape) for weight in weights.values()]
    return [shares_moments and is_shared_out(shape, grid.replicas.size) for shape in shapes]


class AddGradients(nn.Cell):
    """Add gradients to their sums; return `result` afterwards.

    The last weight's comes first, as the backward pass makes them: additions keep their order, and gradients
    that wait for theirs take memory beside the sums.
    """

    def __init__(self, sums: ParameterTuple, kernels: Kernels) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.each, self.kernels = sums, ops.HyperMap(), kernels

    def construct(self, gradients: tuple[Tensor, ...], result: Tensor) -> Tensor:
        return ops.depend(result, self.each(self._add, self.sums[::-1], gradients[::-1]))

    def _add(self, total: Tensor, gradient: Tensor) -> Tensor:
        return self.kernels.add_to(total, gradient)


class BucketSum(nn.Cell):
    """Replace some of many tensors by their sums over a group, or by this rank's rows of these sums.

    Args of the call:
        tensors: All of them.
        last: A tensor that is there before the first exchange begins.

    Returns:
        All of them, and a tensor that is there when the last exchange has ended.
    """

    def __init__(
        self,
        group: Group,
        chosen: Sequence[int],
        shapes: Sequence[tuple[int, ...]],
        *,
        scatters: bool = False,
    ) -> None:
        """Choose tensors by their indices, in the order of their exchange.

        Args:
            group: Whose ranks exchange.
            chosen: Indices of the tensors.
            shapes: Shapes of all tensors.
            scatters: Return this rank's rows, or elements, alone.
        """
        super().__init__(auto_prefix=False)
        self.group, self.scatters = group, scatters
        sizes = [math.prod(shape) for shape in shapes]
        self.buckets = () if group.size == 1 else make_buckets(chosen, sizes)
        self.pieces = group.size if scatters else 1
        self.sizes = tuple(tuple(sizes[i] // self.pieces for i in bucket) for bucket in self.buckets)
        self.shapes = tuple(piece_shape(shape, self.pieces) for shape in shapes)
        self.where = tuple(_find_in_buckets(self.buckets, i) for i in range(len(shapes)))
        self.join, self.split = ops.Concat(1), ops.auto_generate.SplitWithSize()

    def construct(self, tensors: tuple[Tensor, ...], last: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        if len(self.buckets) == 0:
            return tensors, last
        sums: tuple[tuple[Tensor, ...], ...] = ()
        for number in range(len(self.buckets)):
            # One bucket after the other, in the same order on all ranks.
            last = self._exchange_bucket(number, tensors, last)
            sums = (*sums, self._parts(number, last.reshape(-1)))
        results: tuple[Tensor, ...] = ()
        for first in range(0, len(tensors), BLOCK):
            results = (*results, *self._pick_block(first, tensors[first : first + BLOCK], sums))
        return results, last

    def exchange(self, number: int, tensors: tuple[Tensor, ...], last: Tensor) -> tuple[Tensor, ...]:
        """Return the sums of one bucket alone, after `last`."""
        return self._parts(number, self._exchange_bucket(number, tensors, last).reshape(-1))

    def _exchange_bucket(self, number: int, tensors: tuple[Tensor, ...], last: Tensor) -> Tensor:
        joined = self._join_bucket(self.buckets[number], tensors, last)
        return self.group.scatter_rows(joined) if self.scatters else self.group.sum(joined)

    def _join_bucket(self, bucket: tuple[int, ...], tensors: tuple[Tensor, ...], last: Tensor) -> Tensor:
        """Return the tensors of a bucket side by side, a row for each rank that gets one.

        Not before `last`: of sums, which stay, the copies of all buckets would be made at once.
        """
        flat: tuple[Tensor, ...] = ()
        for i in bucket:
            flat = (*flat, ops.depend(tensors[i], last).reshape(self.pieces, -1))
        return flat[0] if len(flat) == 1 else self.join(flat)

    def _parts(self, number: int, total: Tensor) -> tuple[Tensor, ...]:
        """The tensors of a bucket."""
        bucket, sizes = self.buckets[number], self.sizes[number]
        flat = (total,) if len(sizes) == 1 else self.split(total, sizes, 0)
        parts: tuple[Tensor, ...] = ()
        for k in range(len(bucket)):
            parts = (*parts, flat[k].reshape(self.shapes[bucket[k]]))
        return parts

    def _pick_block(
        self, first: int, tensors: tuple[Tensor, ...], sums: tuple[tuple[Tensor, ...], ...]
    ) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = ()
        for i in range(len(tensors)):
            number, k = self.where[first + i]
            results = (*results, tensors[i] if number < 0 else sums[number][k])
        return results


def make_buckets(chosen: Sequence[int], sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the chosen indices in groups of at most `BUCKET_BYTES` of float32, in their order."""
    buckets: list[list[int]] = []
    filled = BUCKET_BYTES
    for i in chosen:
        if filled + sizes[i] * 4 > BUCKET_BYTES:
            buckets.append([])
            filled = 0
        buckets[-1].append(i)
        filled += sizes[i] * 4
    return tuple(tuple(bucket) for bucket in buckets)


def _find_in_buckets(buckets: Sequence[Sequence[int]], i: int) -> tuple[int, int]:
    """Return the number of the bucket of tensor `i` and the tensor's index there; -1 where none has it."""
    for number, bucket in enumerate(buckets):
        if i in bucket:
            return number, bucket.index(i)
    return -1, 0
