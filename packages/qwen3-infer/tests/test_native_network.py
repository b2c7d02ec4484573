"""The model in compiled kernels alone: the bits of its operations one by one in MindSpore's graphs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen3_infer.device import Device
from qwen3_infer.folder.weights import open_hf_weights
from qwen3_infer.native.model import NativeModel
from qwen3_infer.processes.local import make_local
from qwen3_model.checkpoints.adapters import EMBEDDING, Adapter, AdapterSet
from qwen3_model.config import Qwen3Config
from qwen3_model.device.native_build import BuildError

GOLDEN_DIR = Path(__file__).parent / "golden"
IDS = [int(number) for number in np.random.default_rng(0).integers(0, 320, 75)]


def logits(engine):
    """Return the logits after a prompt in pieces, and after two more tokens of it in a batch of three."""
    found = [engine.read(0, IDS[:32], 0, 32), engine.read(0, IDS[32:64], 32, 32)]
    for start in (128, 256):
        engine.read(start, IDS[:32], 0, 32)
    starts, tokens = np.array([0, 128, 256], np.int32), np.array([5, 6, 7], np.int32)
    for step in range(2):
        found.extend(engine.decode(starts, tokens + step, np.array([64, 32, 32], np.int32) + step))
    return np.stack(found)


def make_adapter(config, modules, rank=2):
    """Return an adapter of random numbers on `modules`."""
    rng, halves = np.random.default_rng(1), {}
    for module in modules:
        outputs, inputs = config.weight_shapes()[f"{module}.weight"]
        if module == EMBEDDING:
            outputs, inputs = inputs, outputs
        a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((rank, inputs), (outputs, rank)))
        halves[module] = Adapter(a, b)
    return AdapterSet(halves, 4.0)


ADAPTED = {
    "none": (),
    "one layer": ("model.layers.1.mlp.up_proj",),
    "all": (
        EMBEDDING, *(f"model.layers.{number}.{module}" for number in range(2) for module in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kernels", ["native", "native-bf16"])
@pytest.mark.parametrize(
    ("size", "adapted"), [("tied", "none"), ("yarn", "none"), ("tied", "one layer"), ("tied", "all")]
)
def test_the_model_has_the_bits_of_its_operations(cache_dir, kernels, size, adapted):
    # Here, since the sanitizers' run has no MindSpore.
    from qwen3_infer.engine.engine import MindSporeEngine, choose_kernels
    from qwen3_infer.engine.loading import build_model

    device = Device(target="CPU", kernels=kernels, num_threads=2, cache_dir=cache_dir)
    config, weights = Qwen3Config.from_dir(GOLDEN_DIR / size), open_hf_weights(GOLDEN_DIR / size)
    adapter = make_adapter(config, ADAPTED[adapted]) if ADAPTED[adapted] else None
    try:
        model = make_local(config, weights, adapter, device, quiet=True, note=pytest.fail)
    except BuildError:
        pytest.skip("this processor does not multiply bfloat16")
    assert isinstance(model, NativeModel)
    graph = build_model(config, weights, adapter, choose_kernels(device, pytest.fail))
    np.testing.assert_array_equal(logits(model.engine(3, 128)), logits(MindSporeEngine(graph, 3, 128)))


@pytest.mark.parametrize("adapted", ["none", "all"])
def test_a_row_has_the_same_bits_however_it_is_cut_and_in_any_batch(cache_dir, adapted):
    device = Device(target="CPU", kernels="native", num_threads=2, cache_dir=cache_dir)
    config, weights = Qwen3Config.from_dir(GOLDEN_DIR / "tied"), open_hf_weights(GOLDEN_DIR / "tied")
    adapter = make_adapter(config, ADAPTED[adapted]) if ADAPTED[adapted] else None
    engine = make_local(config, weights, adapter, device, quiet=True, note=pytest.fail).engine(10, 96)
    wanted = engine.read(0, IDS, 0, 96)
    np.testing.assert_array_equal(engine.read_all(96, IDS[:40], 0, 64)[-1], engine.read(192, IDS[:40], 0, 64))
    for first, length in [(40, 3), (43, 17), (60, 14)]:
        engine.read(96, IDS[first : first + length], first, length)
    starts, tokens = np.arange(10, dtype=np.int32) * 96, np.array([1, IDS[74], *range(8)], np.int32)
    positions = np.array([75, 74, 40, *[0] * 7], np.int32)
    np.testing.assert_array_equal(engine.decode(starts, tokens, positions)[1], wanted)
    engine.copy(96, 192, 64)
    np.testing.assert_array_equal(engine.read(192, IDS[64:], 64, 32), wanted)


def test_tokens_outside_the_vocabulary_or_the_cache_are_refused(cache_dir):
    device = Device(target="CPU", kernels="native", num_threads=2, cache_dir=cache_dir)
    config, weights = Qwen3Config.from_dir(GOLDEN_DIR / "tied"), open_hf_weights(GOLDEN_DIR / "tied")
    model = make_local(config, weights, None, device, quiet=True, note=pytest.fail)
    engine = model.engine(1, 32)
    first = engine.read(0, IDS[:8], 0, 32)
    for start, ids, position in [
        (0, [config.vocab_size], 0), (0, [-1], 0), (0, [1], 32), (0, [1, 2], 31), (0, [1], -1), (-1, [1], 0),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match="outside the vocabulary or the cache"):
            engine.read(start, ids, position, 32)
    np.testing.assert_array_equal(engine.read(0, IDS[7:8], 7, 32), first)


def test_native_kernels_do_without_mindspore(cache_dir):
    code = (
        "import sys; from pathlib import Path; from qwen3_infer.device import Device;"
        "from qwen3_infer.processes.local import open_local;"
        "device = Device(target='CPU', kernels='native', num_threads=1, cache_dir=Path(sys.argv[2]));"
        "model = open_local(Path(sys.argv[1]), device, quiet=True, note=print);"
        "model.engine(1, 32).read(0, [1, 2], 0, 32); model.scorer(8).score([1, 2, 3], 2);"
        "assert 'mindspore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, GOLDEN_DIR / "tied", cache_dir], check=True)
