"""The gradients that are written by hand, against central differences in float64."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from qwen3_model.network.kernels.portable_ops import OrderRows, RmsNorm, Softmax

EPS = 1e-6
RTOL_GRADIENT = 1e-4  # float32 sums against float64 differences


def numeric_gradient(function, x, step=1e-6):
    gradient = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_rms_norm_and_its_gradients(rng):
    x, weight, out_weights = rng.standard_normal((3, 4)), rng.standard_normal(4), rng.standard_normal((3, 4))

    def numpy_loss(x, weight):
        return float((x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight * out_weights).sum())

    norm, factors = RmsNorm(), Tensor(out_weights.astype(np.float32))

    def loss(x, weight):
        return (norm(x, weight, EPS) * factors).sum()

    ours, gradients = ms.value_and_grad(loss, (0, 1))(Tensor(x, ms.float32), Tensor(weight, ms.float32))
    assert float(ours) == pytest.approx(numpy_loss(x, weight), rel=1e-5)
    expected = (
        numeric_gradient(lambda v: numpy_loss(v, weight), x),
        numeric_gradient(lambda v: numpy_loss(x, v), weight),
    )
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found.asnumpy(), wanted, rtol=RTOL_GRADIENT, atol=1e-5)


def test_softmax_and_its_gradient(rng):
    x, out_weights = rng.standard_normal((3, 5)), rng.standard_normal((3, 5))

    def numpy_loss(x):
        powers = np.exp(x - x.max(-1, keepdims=True))
        return float((powers / powers.sum(-1, keepdims=True) * out_weights).sum())

    softmax, factors = Softmax(), Tensor(out_weights.astype(np.float32))

    def loss(x):
        return (softmax(x) * factors).sum()

    ours, gradient = ms.value_and_grad(loss, 0)(Tensor(x, ms.float32))
    assert float(ours) == pytest.approx(numpy_loss(x), rel=1e-5)
    np.testing.assert_allclose(
        gradient.asnumpy(), numeric_gradient(numpy_loss, x), rtol=RTOL_GRADIENT, atol=1e-6
    )


def test_the_gradient_of_an_order_is_its_inverse(rng):
    order = rng.permutation(6).astype(np.int32)
    inverse = np.argsort(order).astype(np.int32)
    factors = rng.standard_normal((6, 2)).astype(np.float32)
    order_rows = OrderRows()

    def loss(x):
        return (order_rows(x, Tensor(order), Tensor(inverse)) * Tensor(factors)).sum()

    gradient = ms.grad(loss, 0)(Tensor(np.zeros((6, 2), np.float32)))
    np.testing.assert_array_equal(gradient.asnumpy(), factors[inverse])
