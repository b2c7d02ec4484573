"""Gradients of a step from those that each rank has: summed over ranks, with what clips their common norm.

What is summed: over shards the gradients of weights that each uses in part; over the two ends of a pipeline
those of a tied embedding; over replicas all. Tensors travel in buckets, so that small ones cost no latency of
their own. Each weight counts once in the norm, whatever the layout.
"""

from collections.abc import Mapping, Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from qwen3_model.collectives import Group
from qwen3_train.optimizer import ClipScale, SumOfSquares
from qwen3_train.parallel.grid import Grid

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

    def __init__(self, num_weights: int, max_norm: float | None) -> None:
        super().__init__(auto_prefix=False)
        self.squares, self.clip = SumOfSquares((True,) * num_weights), ClipScale(max_norm)

    def construct(self, gradients: tuple[Tensor, ...], loss: Tensor) -> Finished:
        norm = ops.sqrt(self.squares(gradients).reshape(()))
        return gradients, self.clip(norm), norm, loss


class SharedGradients(nn.Cell):
    """Many ranks: the same call, with gradients and loss of all of them."""

    def __init__(self, weights: Mapping[str, Parameter], grid: Grid, max_norm: float | None) -> None:
        super().__init__(auto_prefix=False)
        names = list(weights)
        sizes = [weight.size for weight in weights.values()]
        partial = [i for i, name in enumerate(names) if grid.tp.is_partial(name)]
        tied = [i for i, name in enumerate(names) if grid.ends.size > 1 and "embed_tokens" in name]
        self.shards = BucketSum(grid.tp.group, partial, sizes)
        self.ends = BucketSum(grid.ends, tied, sizes)
        self.replicas = BucketSum(grid.replicas, range(len(names)), sizes)
        self.world, self.has_loss = grid.world, grid.has_loss()
        self.squares, self.clip = SumOfSquares([grid.counts(name) for name in names]), ClipScale(max_norm)
        self.join, self.nothing = ops.Concat(0), Tensor([0.0], ms.float32)

    def construct(self, gradients: tuple[Tensor, ...], loss: Tensor) -> Finished:
        gradients = self.replicas(self.ends(self.shards(gradients)))
        # Behind the last bucket in any case, so that all ranks exchange in the same order.
        square = ops.depend(self.squares(gradients), gradients)
        own_loss = loss.reshape(-1) if self.has_loss else self.nothing
        totals = self.world.sum(self.join((square, own_loss)))
        norm, loss = ops.sqrt(totals[0]), totals[1]
        return gradients, self.clip(norm), norm, loss


class AddGradients(nn.Cell):
    """Add gradients to their sums; return `result` afterwards."""

    def __init__(self, sums: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.sums, self.each, self.add = sums, ops.HyperMap(), ops.AssignAdd()

    def construct(self, gradients: tuple[Tensor, ...], result: Tensor) -> Tensor:
        return ops.depend(result, self.each(self.add, self.sums, gradients))


class BucketSum(nn.Cell):
    """Replace some of many tensors by their sums over a group."""

    def __init__(self, group: Group, chosen: Sequence[int], sizes: Sequence[int]) -> None:
        """Choose tensors by their places; `sizes` has the elements of all tensors."""
        super().__init__(auto_prefix=False)
        self.group, self.join = group, ops.Concat(0)
        self.buckets = () if group.size == 1 else make_buckets(chosen, sizes)
        self.where = tuple(_place(self.buckets, sizes, i) for i in range(len(sizes)))

    def construct(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if len(self.buckets) == 0:
            return tensors
        sums: tuple[Tensor, ...] = ()
        for bucket in self.buckets:
            joined = self._joined(bucket, tensors)
            if len(sums) > 0:  # one bucket after the other, in the same order on all ranks
                joined = ops.depend(joined, sums[-1])
            sums = (*sums, self.group.sum(joined))
        results: tuple[Tensor, ...] = ()
        for first in range(0, len(tensors), BLOCK):
            results = (*results, *self._pick_block(first, tensors[first : first + BLOCK], sums))
        return results

    def _joined(self, bucket: tuple[int, ...], tensors: tuple[Tensor, ...]) -> Tensor:
        flat: tuple[Tensor, ...] = ()
        for i in bucket:
            flat = (*flat, tensors[i].reshape(-1))
        return flat[0] if len(flat) == 1 else self.join(flat)

    def _pick_block(
        self, first: int, tensors: tuple[Tensor, ...], sums: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = ()
        for i in range(len(tensors)):
            number, start, end = self.where[first + i]
            result = tensors[i] if number < 0 else sums[number][start:end].reshape(tensors[i].shape)
            results = (*results, result)
        return results


def make_buckets(chosen: Sequence[int], sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the chosen places in groups of at most `BUCKET_BYTES` of float32, in their order."""
    buckets: list[list[int]] = []
    filled = BUCKET_BYTES
    for i in chosen:
        if filled + sizes[i] * 4 > BUCKET_BYTES:
            buckets.append([])
            filled = 0
        buckets[-1].append(i)
        filled += sizes[i] * 4
    return tuple(tuple(bucket) for bucket in buckets)


def _place(buckets: Sequence[Sequence[int]], sizes: Sequence[int], i: int) -> tuple[int, int, int]:
    """The bucket of tensor `i` with its first and last element there; -1 for none."""
    for number, bucket in enumerate(buckets):
        if i in bucket:
            first = sum(sizes[other] for other in bucket[: bucket.index(i)])
            return number, first, first + sizes[i]
    return -1, 0, 0
