"""Print loss and gradient norm of three steps, and the bytes that they take: `recompute_memory.py KIND`."""

import sys
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np

from qwen3_model.config import SIZES
from qwen3_model.network.loading import init_model
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.settings.recompute import read_recompute
from qwen3_train.step.recompute import apply_recompute
from qwen3_train.step.step import TrainStep

SECTIONS = {"none": {}, "selective": {"select_recompute": True}, "full": {"recompute": True}}


def peak_bytes():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def take_steps(config, length, kind):
    model = Qwen3ForCausalLM(config)
    init_model(model, 5)
    apply_recompute(model, read_recompute(SECTIONS[kind], 1), 0)
    adam = AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    step = TrainStep(model, adam, max_norm=1.0, num_micro_batches=1)
    ids_BL = np.random.default_rng(0).integers(0, config.vocab_size, (1, length)).astype(np.int32)
    batch = Batch(ids_BL, ids_BL, np.full((1, length), 1 / length, np.float32), None, None)
    return [step.run([batch], 1e-3, number) for number in (1, 2, 3)]


ms.set_context(mode=ms.GRAPH_MODE)
tiny = {"num_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "num_kv_heads": 1}
config = replace(SIZES["0.6B"], vocab_size=64, head_dim=32)
# The runtime itself first, so that it does not count.
take_steps(replace(config, **tiny), 32, "none")
before = peak_bytes()
shape = {"num_layers": 4, "hidden_size": 256, "intermediate_size": 1024, "num_heads": 8, "num_kv_heads": 4}
results = take_steps(replace(config, **shape), 512, sys.argv[1])
numbers = [f"{number!r}" for result in results for number in (result.loss, result.grad_norm)]
sys.stdout.write(" ".join([*numbers, str(peak_bytes() - before)]) + "\n")
