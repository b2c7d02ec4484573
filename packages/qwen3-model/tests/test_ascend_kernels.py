"""The Ascend graphs, compiled by MindSpore's front end on a CPU: operators and shapes, not numbers."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from qwen3_model.cache import KVCache
from qwen3_model.config import SIZES
from qwen3_model.errors import ConfigError
from qwen3_model.kernels import AscendKernels, PortableKernels, make_kernels
from qwen3_model.model import CachedQwen3, Qwen3ForCausalLM

FUSED = (b"FlashAttentionScore", b"RmsNorm", b"RotaryPositionEmbedding", b"Swiglu")
CONFIG = dataclasses.replace(SIZES["0.6B"], num_layers=1, vocab_size=512, max_position_embeddings=64)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a refused graph is written to the working directory


@pytest.fixture(scope="module")
def network():
    return Qwen3ForCausalLM(CONFIG, AscendKernels(), param_dtype=ms.bfloat16)


def ints(*shape):
    return Tensor(np.zeros(shape, np.int32))


def compile_graph(tmp_path, cell, *inputs):
    ms.export(cell, *inputs, file_name=str(tmp_path / "graph"), file_format="MINDIR")
    return b"".join(path.read_bytes() for path in tmp_path.rglob("*.mindir"))


def test_training_graph_with_the_causal_order(tmp_path, network):
    graph = compile_graph(tmp_path, network, ints(2, 64))
    assert all(name in graph for name in FUSED)


def test_training_graph_with_documents_kept_apart(tmp_path, network):
    graph = compile_graph(tmp_path, network, ints(2, 64), ints(2, 64), ints(2, 64))
    assert all(name in graph for name in FUSED)


@pytest.mark.parametrize("length", [32, 1], ids=["prefill", "decode"])
def test_cached_graphs(tmp_path, network, length):
    cached = CachedQwen3(network, KVCache(CONFIG, 2, 64, ms.bfloat16))
    graph = compile_graph(tmp_path, cached, ints(2, length), ints(2, length), ints(2))
    assert all(name in graph for name in (*FUSED, b"ScatterUpdate"))


def test_gradients_compile(tmp_path, network):
    class Gradients(nn.Cell):
        def __init__(self):
            super().__init__()
            self.network = network
            self.gradient = ops.GradOperation(get_by_list=True)
            self.weights = ms.ParameterTuple(network.trainable_params())

        def construct(self, ids_BL):
            return self.gradient(self.network, self.weights)(ids_BL)

    graph = compile_graph(tmp_path, Gradients(), ints(1, 16))
    assert all(name in graph for name in (b"FlashAttentionScoreGrad", b"RmsNormGrad", b"SwigluGrad"))


def test_the_front_end_refuses_wrong_shapes_so_that_these_tests_can_fail(tmp_path):
    class WrongShape(nn.Cell):
        def __init__(self):
            super().__init__()
            self.kernels = AscendKernels()

        def construct(self, q_RH, turn_BLH):
            plan = self.kernels.plan(turn_BLH, turn_BLH, None, 3, 2)
            return self.kernels.attention(q_RH, q_RH, q_RH, plan)

    q_RH = Tensor(np.zeros((16, 128), np.float32)).astype(ms.bfloat16)
    with pytest.raises(ValueError, match="shape"):
        compile_graph(tmp_path, WrongShape(), q_RH, Tensor(np.zeros((1, 8, 64), np.float32)))


def test_the_device_chooses_the_kernels():
    assert isinstance(make_kernels("CPU"), PortableKernels)
    assert isinstance(make_kernels("Ascend"), AscendKernels)
    with pytest.raises(ConfigError, match="device_target='GPU' is not supported"):
        make_kernels("GPU")
