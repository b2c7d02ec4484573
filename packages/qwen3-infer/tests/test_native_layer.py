"""A layer as one native operation: the bits of its operations one by one, with and without an adapter."""

from pathlib import Path

import numpy as np
import pytest

from qwen3_infer.device import Device
from qwen3_infer.engine import loading
from qwen3_infer.engine.engine import MindSporeEngine, choose_kernels
from qwen3_infer.engine.weights import open_hf_weights
from qwen3_infer.native.layer import NativeLayer
from qwen3_model.adapters import Adapter, AdapterSet
from qwen3_model.config import Qwen3Config
from qwen3_model.native_build import BuildError

GOLDEN_DIR = Path(__file__).parent / "golden/tied"
IDS = [int(number) for number in np.random.default_rng(0).integers(0, 320, 75)]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def logits(model):
    """Return the logits after a prompt in pieces, and after two more tokens of it in a batch of three."""
    engine = MindSporeEngine(model, 3, 128)
    found = [engine.read(0, IDS[:32], 0, 32), engine.read(0, IDS[32:64], 32, 32)]
    for start in (128, 256):
        engine.read(start, IDS[:32], 0, 32)
    starts, tokens = np.array([0, 128, 256], np.int32), np.array([5, 6, 7], np.int32)
    for step in range(2):
        found.extend(engine.decode(starts, tokens + step, np.array([64, 32, 32], np.int32) + step))
    return np.stack(found)


@pytest.mark.parametrize("kernels", ["native", "native-bf16"])
def test_a_joined_layer_has_the_bits_of_its_operations(cache_dir, monkeypatch, kernels):
    device = Device(target="CPU", kernels=kernels, num_threads=2, cache_dir=cache_dir)
    try:
        chosen = choose_kernels(device, pytest.fail)
    except BuildError:
        pytest.skip("this processor does not multiply bfloat16")
    joined = loading.load_model(GOLDEN_DIR, chosen, quiet=True)
    assert all(isinstance(layer, NativeLayer) for layer in joined.model.layers)
    monkeypatch.setattr(loading, "join_operations", lambda model: None)
    apart = loading.load_model(GOLDEN_DIR, chosen, quiet=True)
    assert [name for name, _ in joined.parameters_and_names()] == [
        name for name, _ in apart.parameters_and_names()
    ]
    np.testing.assert_array_equal(logits(joined), logits(apart))


def test_only_layers_with_an_adapter_stay_apart(cache_dir):
    device = Device(target="CPU", kernels="native", num_threads=2, cache_dir=cache_dir)
    kernels = choose_kernels(device, pytest.fail)
    config = Qwen3Config.from_dir(GOLDEN_DIR)
    weight = config.weight_shapes()["model.layers.1.mlp.up_proj.weight"]
    halves = Adapter(np.ones((2, weight[1]), np.float32), np.zeros((weight[0], 2), np.float32))
    adapter = AdapterSet({"model.layers.1.mlp.up_proj": halves}, 4.0)
    model = loading.build_model(config, open_hf_weights(GOLDEN_DIR), adapter, kernels)
    is_joined = [isinstance(layer, NativeLayer) for layer in model.model.layers]
    assert is_joined == [number != 1 for number in range(config.num_layers)]
    # An adapter of zeros changes nothing.
    plain = loading.load_model(GOLDEN_DIR, kernels, quiet=True)
    np.testing.assert_array_equal(logits(model), logits(plain))
