"""Each piece of the model against transformers, the cheapest first."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from qwen3_model.network.kernels.portable import PortableKernels

ATOL_F32 = 2e-6  # the order of float32 sums; values are of size one
ATOL_LAYER = 3e-5  # several of them after another, values up to ten


@pytest.fixture(scope="module", params=["untied", "yarn"])
def found(request, golden):
    return golden(request.param)


@pytest.fixture(scope="module")
def layer(found, make_model):
    return make_model("yarn" if found.config.rope_scaling else "untied").model.layers[0]


def make_plan(found, head_counts=None):
    positions_BL = found.tensors["pieces.positions"]
    half = found.config.head_dim // 2
    cos_BLH = Tensor(np.ascontiguousarray(found.tensors["pieces.rope.cos"][..., :half]))
    sin_BLH = Tensor(np.ascontiguousarray(found.tensors["pieces.rope.sin"][..., :half]))
    assert positions_BL.shape == cos_BLH.shape[:2]
    counts = head_counts or (found.config.num_heads, found.config.num_kv_heads)
    return PortableKernels().plan(cos_BLH, sin_BLH, None, *counts)


def rows(array):
    return Tensor(np.ascontiguousarray(array.reshape(-1, array.shape[-1])))


def test_rms_norm(found, layer, assert_close):
    ours = layer.input_layernorm(rows(found.tensors["pieces.x"])).asnumpy()
    assert_close(ours, rows(found.tensors["pieces.norm"]).asnumpy(), atol=ATOL_F32)


def test_rotation(found, assert_close):
    ours = PortableKernels().rotate_queries(rows(found.tensors["pieces.rope.x"]), make_plan(found)).asnumpy()
    assert_close(ours, rows(found.tensors["pieces.rope.turned"]).asnumpy(), atol=ATOL_F32)


def test_feed_forward(found, layer, assert_close):
    ours = layer.mlp(rows(found.tensors["pieces.x"])).asnumpy()
    assert_close(ours, rows(found.tensors["pieces.mlp"]).asnumpy(), atol=ATOL_LAYER)


def test_attention(found, layer, assert_close):
    ours = layer.self_attn(rows(found.tensors["pieces.x"]), make_plan(found)).asnumpy()
    assert_close(ours, rows(found.tensors["pieces.attention"]).asnumpy(), atol=ATOL_LAYER)


def test_decoder_layer(found, layer, assert_close):
    ours = layer(rows(found.tensors["pieces.x"]), make_plan(found)).asnumpy()
    assert_close(ours, rows(found.tensors["pieces.layer"]).asnumpy(), atol=ATOL_LAYER)


def test_a_query_that_sees_nothing_gets_finite_numbers():
    kernels = PortableKernels()
    turn_BLH = Tensor(np.zeros((1, 2, 4), np.float32))
    plan = kernels.plan(turn_BLH, turn_BLH, Tensor(np.zeros((1, 2, 2), bool)), 2, 1)
    out = kernels.attention(
        ms.ops.ones((4, 8)), ms.ops.ones((2, 8)), Tensor(np.arange(16, dtype=np.float32).reshape(2, 8)), plan
    )
    np.testing.assert_allclose(out.asnumpy(), np.tile(np.arange(8) + 4.0, (4, 1)), rtol=1e-6)
