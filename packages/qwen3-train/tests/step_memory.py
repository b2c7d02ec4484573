"""Print the bytes that two steps take: `python step_memory.py LAYERS VOCABULARY LENGTH`."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from qwen3_model.config import SIZES
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.step.step import TrainStep


def peak_bytes():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def take_steps(config, length):
    model = Qwen3ForCausalLM(config)
    adam = AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    step = TrainStep(model, adam, max_norm=1.0, num_micro_batches=1)
    ids_BL = np.zeros((1, length), np.int32)
    batch = Batch(ids_BL, ids_BL, np.ones((1, length), np.float32), None, None)
    for number in (1, 2):
        step.run([batch], 1e-3, number)


num_layers, vocab_size, length = map(int, sys.argv[1:])
config = replace(SIZES["0.6B"], num_layers=num_layers, vocab_size=vocab_size)
# The runtime itself first, so that it does not count.
take_steps(
    replace(config, hidden_size=32, intermediate_size=32, num_heads=2, num_kv_heads=1, vocab_size=64), 32
)
before = peak_bytes()
take_steps(config, length)
sys.stdout.write(f"{peak_bytes() - before}\n")
