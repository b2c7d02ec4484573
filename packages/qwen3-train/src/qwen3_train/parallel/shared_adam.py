"""AdamW whose moments are shared out over replicas (ZeRO-1, Rajbhandari et al. 2020, section 5.1).

Each replica has the moments of its rows of every weight, updates those rows, and gets the others' from them.
A weight whose rows do not divide is updated by all.
"""

from collections.abc import Mapping
from typing import Any

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from qwen3_model.collectives import Group
from qwen3_model.layers import Kernels
from qwen3_train.optimizer import AdamW
from qwen3_train.parallel.gradients import make_buckets
from qwen3_train.parallel.stages import is_shared_out
from qwen3_train.settings.adam import AdamSettings


class SharedAdamW(nn.Cell):
    """The same call as `AdamW`; `m` and `v` hold this replica's rows."""

    def __init__(
        self,
        weights: Mapping[str, Parameter],
        settings: AdamSettings,
        replicas: Group,
        kernels: Kernels,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple(list(weights.values()))
        pieces = {}
        for name, weight in weights.items():
            cut = is_shared_out(weight.shape, replicas.size)
            pieces[name] = _piece(name, weight, replicas.size) if cut else weight
        self.adam = AdamW(pieces, settings, kernels)
        self.m, self.v, self.pieces = self.adam.m, self.adam.v, self.adam.weights
        self.replicas, self.index, self.size = replicas, replicas.index, replicas.size
        self.cut = tuple(is_shared_out(weight.shape, replicas.size) for weight in weights.values())
        sizes = [piece.size for piece in self.pieces]
        self.buckets = make_buckets([i for i, cut in enumerate(self.cut) if cut], sizes)
        self.assign, self.join, self.each = ops.Assign(), ops.Concat(0), ops.HyperMap()

    def construct(
        self,
        rate: Tensor,
        eps: Tensor,
        decay: Tensor,
        gradients: tuple[Tensor, ...],
        scale: Tensor | None = None,
    ) -> Tensor:
        taken = self.each(self._take, self.cut, self.pieces, self.weights)
        own = self.each(self._own, self.cut, gradients)
        done = self.adam(ops.depend(rate, taken), eps, decay, own, scale)
        for bucket in self.buckets:
            done = ops.depend(done, self._hand_round(bucket, done))
        return done

    def _take(self, is_cut: bool, piece: Tensor, weight: Tensor) -> Any:
        """Put this replica's rows of a weight into its piece."""
        return self.assign(piece, self._rows(weight)) if is_cut else piece

    def _own(self, is_cut: bool, gradient: Tensor) -> Tensor:
        return self._rows(gradient) if is_cut else gradient

    def _rows(self, x: Tensor) -> Tensor:
        """This replica's rows."""
        rows = x.shape[0] // self.size
        return x[self.index * rows : (self.index + 1) * rows]

    def _hand_round(self, bucket: tuple[int, ...], done: Tensor) -> Tensor:
        """Put the rows that all replicas have updated into the weights."""
        flat: tuple[Tensor, ...] = ()
        for i in bucket:
            flat = (*flat, ops.depend(self.pieces[i], done).reshape(-1))
        joined = flat[0] if len(flat) == 1 else self.join(flat)
        all_R = self.replicas.gather_rows(ops.depend(joined, done)).reshape(self.size, -1)
        first = 0
        for i in bucket:
            end = first + self.pieces[i].size
            rows = all_R[:, first:end].reshape(self.weights[i].shape)
            done = ops.depend(done, self.assign(self.weights[i], rows))
            first = end
        return done


def _piece(name: str, weight: Parameter, num_replicas: int) -> Parameter:
    rows = weight.shape[0] // num_replicas
    zeros = ops.zeros((rows, *weight.shape[1:]), weight.dtype)
    return Parameter(zeros, name=f"piece.{name}", requires_grad=False)
