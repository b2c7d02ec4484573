"""Sums over replicas, bucket by bucket, with a group of two whose other replica has the same gradients."""

import math
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn

from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_train.update import gradients as module
from qwen3_train.update.gradients import BucketSum, SumReplicas

SHAPES = {"a": (4, 3), "norm": (3,), "b": (6, 5), "c": (2, 2), "d": (5, 2)}


@ms.jit_class
class Twins:
    size, index = 2, 1

    def sum(self, x):
        return x * 2.0

    def scatter_rows(self, x_TRD):
        return x_TRD[x_TRD.shape[0] // 2 :] * 2.0


@pytest.fixture
def sums(monkeypatch):
    # Two in a bucket, one that is larger than a bucket, two more.
    monkeypatch.setattr(module, "BUCKET_BYTES", 80)
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return made, ParameterTuple([Parameter(Tensor(value), name=name) for name, value in made.items()])


@pytest.mark.parametrize("shares_moments", [False, True])
def test_sums_of_replicas_take_the_place_of_the_sums(sums, shares_moments):
    values, totals = sums
    weights = {total.name: total for total in totals}
    grid = SimpleNamespace(replicas=Twins())
    cell = SumReplicas(weights, totals, grid, PortableKernels(), shares_moments)
    assert len(cell.bucket_sum.buckets) == (1 if shares_moments else 3)
    cell()
    for name, total in weights.items():
        # What is shared out stays as it is: rows, or else elements, divide by 2 replicas.
        is_own = shares_moments and math.prod(SHAPES[name]) % 2 == 0
        np.testing.assert_array_equal(total.asnumpy(), values[name] * (1 if is_own else 2))


def test_a_replica_gets_its_own_rows_of_each_bucket(sums):
    values, totals = sums
    chosen = [i for i, shape in enumerate(SHAPES.values()) if shape[0] % 2 == 0]

    class Rows(nn.Cell):
        def __init__(self):
            super().__init__()
            self.rows = BucketSum(Twins(), chosen, list(SHAPES.values()), scatters=True)
            self.totals, self.start = totals, Tensor([0.0], ms.float32)

        @ms.jit
        def construct(self):
            return self.rows(self.totals, self.start)[0]

    for i, (name, rows) in enumerate(zip(values, Rows()(), strict=True)):
        half = SHAPES[name][0] // 2
        want = values[name][half:] * 2 if i in chosen else values[name]
        np.testing.assert_array_equal(rows.asnumpy(), want)
