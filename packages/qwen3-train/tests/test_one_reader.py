"""Replicas as threads, whose sum is numpy's."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from qwen3_train.checkpoints import one_reader
from qwen3_train.checkpoints.one_reader import OneReader

SIZE = 4
SHAPES = [(3, 5), (7,), (16, 8), (1,), (9, 4), (2, 2)]


class Counted:
    """Values that count how often they are read."""

    def __init__(self, values):
        self.values, self.shape, self.nbytes, self.num_read = values, values.shape, values.nbytes, 0

    def __getitem__(self, wanted):
        self.num_read += self.values[wanted].size
        return self.values[wanted]

    def __array__(self, dtype=None, copy=None):
        self.num_read += self.values.size
        return self.values


def odd_values(rng, shape):
    """Return floats of any bits, such that a plain sum would change: zeros with signs, the smallest, NaN."""
    values = rng.integers(0, 2**32, shape, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values.reshape(-1)[0] = rng.choice(np.array([-0.0, 1e-45, np.inf, np.nan], np.float32))
    return values


def on_all(work):
    """Run `work(reader, index)` on every replica at once; return what each returns."""
    barrier, held = Barrier(SIZE, timeout=60), [np.zeros(0, np.float32)] * SIZE

    def run(index):
        def add(values):
            assert values.dtype == np.float32
            held[index] = values
            barrier.wait()
            total = sum(held)
            barrier.wait()
            return total

        return work(OneReader(add, index, SIZE), index)

    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(run, range(SIZE)))


@pytest.mark.parametrize("chunk", [16, one_reader.CHUNK])
def test_each_weight_is_read_once_and_arrives_bit_for_bit(monkeypatch, chunk):
    monkeypatch.setattr(one_reader, "CHUNK", chunk)
    rng = np.random.default_rng(3)
    weights = [odd_values(rng, shape) for shape in SHAPES]

    def work(reader, index):
        counted = [Counted(values) for values in weights]
        parameters = [Parameter(Tensor(np.full(shape, index, np.float32))) for shape in SHAPES]
        for parameter, values in zip(parameters, counted, strict=True):
            reader.put(parameter, "F32", values)
        return [values.num_read for values in counted], [each.asnumpy() for each in parameters]

    found = on_all(work)
    assert np.sum([read for read, _ in found], 0).tolist() == [values.size for values in weights]
    assert all(sum(read) for read, _ in found), "the reading was meant to be shared out"
    for _, arrived in found:
        for got, wanted in zip(arrived, weights, strict=True):
            np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))


def test_only_replicas_that_hold_a_weight_read_it():
    rng = np.random.default_rng(4)
    weights = [rng.random(shape, np.float32) for shape in SHAPES]
    holder_of = [3, 1, 1, 0, 2, 3]

    def work(reader, index):
        holders = reader.holders([holder == index for holder in holder_of])
        parameters = [Parameter(Tensor(np.zeros(shape, np.float32))) for shape in SHAPES]
        for at, parameter in enumerate(parameters):
            values = weights[at] if holder_of[at] == index else None
            reader.put(parameter, "F32", values, holders[:, at])
        return [each.asnumpy() for each in parameters]

    for arrived in on_all(work):
        for got, wanted in zip(arrived, weights, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_bfloat16_arrives_as_float32():
    bits = np.array([[0x3F80, 0xC000]], np.uint16)

    def work(reader, index):
        parameter = Parameter(Tensor(np.zeros((1, 2), np.float32), ms.float32))
        reader.put(parameter, "BF16", bits)
        return parameter.asnumpy().tolist()

    assert on_all(work) == [[[1.0, -2.0]]] * SIZE
