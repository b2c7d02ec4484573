"""AdamW whose moments are shared out over replicas (ZeRO-1, Rajbhandari et al. 2020, section 5.1).

Each replica has the moments of its rows of every weight, updates those rows by their gradients, which are all
that it is given, and gets the others' rows from them.
A weight whose rows do not divide is cut by elements; one whose elements do not either is updated by all.
"""

from collections.abc import Mapping, Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from qwen3_model.network.kernels.seam import Kernels, Scalar
from qwen3_model.ranks.collectives import Group
from qwen3_train.layout.stages import is_cut_by_rows, is_shared_out, piece_shape
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.update.gradients import make_buckets
from qwen3_train.update.optimizer import AdamW


class SharedAdamW(nn.Cell):
    """The same call as `AdamW`; gradients, `m` and `v` have this replica's rows of what is cut."""

    def __init__(
        self,
        weights: Mapping[str, Parameter],
        settings: AdamSettings,
        replicas: Group,
        kernels: Kernels,
        stays: Sequence[bool] | None = None,
    ) -> None:
        """Make this replica's pieces and moments; see `AdamW`."""
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple(list(weights.values()))
        pieces = {}
        for name, weight in weights.items():
            cut = is_shared_out(weight.shape, replicas.size)
            pieces[name] = _piece(name, weight, replicas.size) if cut else weight
        self.adam = AdamW(pieces, settings, kernels, stays)
        self.m, self.v, self.pieces = self.adam.m, self.adam.v, self.adam.weights
        self.replicas, self.index, self.size = replicas, replicas.index, replicas.size
        shapes = [tuple(weight.shape) for weight in weights.values()]
        self.cut = tuple(is_shared_out(shape, replicas.size) for shape in shapes)
        self.is_flat = tuple(
            cut and not is_cut_by_rows(shape, replicas.size)
            for cut, shape in zip(self.cut, shapes, strict=True)
        )
        # What comes round is dp times what goes out; the buckets are made by the latter.
        sizes = [weight.size for weight in self.weights]
        self.buckets = make_buckets([i for i, cut in enumerate(self.cut) if cut], sizes)
        self.kernels, self.each = kernels, ops.HyperMap()
        self.join, self.split = ops.Concat(0), ops.auto_generate.SplitWithSize()

    def construct(
        self,
        rate: Scalar,
        eps: Scalar,
        decay: Scalar,
        step: Tensor,
        gradients: tuple[Tensor, ...],
        scale: Tensor | None = None,
    ) -> Tensor:
        taken = self.each(self._take, self.cut, self.is_flat, self.pieces, self.weights)
        done = self.adam(rate, eps, decay, ops.depend(step, taken), gradients, scale)
        for bucket in self.buckets:
            done = ops.depend(done, self._hand_round(bucket, done))
        return done

    def _take(self, is_cut: bool, is_flat: bool, piece: Tensor, weight: Tensor) -> Tensor:
        """Put this replica's rows or elements of a weight into its piece."""
        if not is_cut:
            return piece
        if is_flat:
            own = self.kernels.rows(weight.reshape(self.size, -1), self.index, self.index + 1)
            return self.kernels.assign(piece, own)
        rows = weight.shape[0] // self.size
        own = self.kernels.rows(weight, self.index * rows, (self.index + 1) * rows)
        return self.kernels.assign(piece, own)

    def _hand_round(self, bucket: tuple[int, ...], done: Tensor) -> Tensor:
        """Put the rows that all replicas have updated into the weights."""
        flat: tuple[Tensor, ...] = ()
        sizes: tuple[int, ...] = ()
        for i in bucket:
            flat = (*flat, ops.depend(self.pieces[i], done).reshape(-1))
            sizes = (*sizes, self.pieces[i].size)
        joined = flat[0] if len(flat) == 1 else self.join(flat)
        all_R = self.replicas.gather_rows(ops.depend(joined, done)).reshape(self.size, -1)
        parts = (all_R,) if len(flat) == 1 else self.split(all_R, sizes, 1)
        for k in range(len(bucket)):
            weight = self.weights[bucket[k]]
            done = ops.depend(done, self.kernels.assign(weight, parts[k].reshape(weight.shape)))
        return done


class GatherMoments(nn.Cell):
    """Put the replicas' elements of a moment that is cut by elements together; all replicas call this."""

    def __init__(self, replicas: Group) -> None:
        super().__init__(auto_prefix=False)
        self.replicas = replicas

    @ms.jit
    def construct(self, piece: Tensor) -> Tensor:
        """Return all elements, (replicas, elements of each)."""
        return self.replicas.gather_rows(piece)


def _piece(name: str, weight: Parameter, num_replicas: int) -> Parameter:
    zeros = ops.zeros(piece_shape(tuple(weight.shape), num_replicas), weight.dtype)
    return Parameter(zeros, name=f"piece.{name}", requires_grad=False)
