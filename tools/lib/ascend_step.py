"""Take two of the trainer's steps as one rank in a dry run, with zeros as weights and data; print the memory.

    python ascend_step.py CONFIG.yaml --key.key VALUE ...

Started by `ascend_record`, which has set the environment. It makes what `qwen3_train.trainer` makes, but for
data, random weights and checkpoints, none of which a dry run needs.
"""

import json
import os
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np

from qwen3_model.kernels import make_kernels
from qwen3_model.lora import add_lora
from qwen3_model.model import Qwen3ForCausalLM
from qwen3_model.simulation import read_simulation
from qwen3_train.data.batches import Batch
from qwen3_train.launch import read_config
from qwen3_train.parallel.grid import make_grid
from qwen3_train.recompute import apply_recompute
from qwen3_train.settings.run import TrainSettings, read_settings
from qwen3_train.settings.token_files import DataSettings
from qwen3_train.step import TrainStep
from qwen3_train.trainer import set_up_device


def main() -> None:
    """Run two steps and print peak and held bytes and the seconds of the first step as JSON."""
    path, *overrides = sys.argv[1:]
    simulation = read_simulation(os.environ)
    assert simulation is not None
    rank, num_ranks = simulation.rank, simulation.num_ranks
    settings = read_settings(read_config(Path(path), overrides), worker_num=num_ranks, simulation=simulation)
    set_up_device(settings.device, settings.ascend, graph_mode=True, is_worker=num_ranks > 1)
    step = make_step(settings, rank)
    batches = [zeros(settings)] * settings.passes
    started_s = time.monotonic()
    step.run(batches, 1e-4, 1)
    first_s = time.monotonic() - started_s
    step.run(batches, 1e-4, 2)
    memory = {
        "peak_bytes": int(ms.runtime.max_memory_allocated()),
        "held_bytes": int(ms.runtime.memory_allocated()),
        "first_step_s": round(first_s, 1),
    }
    print(json.dumps(memory))


def make_step(settings: TrainSettings, rank: int) -> TrainStep:
    """Return the step of a rank, as the trainer makes it."""
    grid = make_grid(settings.device, settings.model, settings.layout, settings.offset, rank)
    kernels = make_kernels(settings.device, float32_residual=settings.ascend.float32_residual)
    model = Qwen3ForCausalLM(settings.model, kernels, tp=grid.tp, part=grid.part)
    dropout, lora = None, settings.lora
    if lora:
        dropout = add_lora(model, lora.modules, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
        for name, parameter in model.parameters_and_names():
            parameter.requires_grad = name in lora.trained
    apply_recompute(model, settings.recompute, grid.stage)
    step = TrainStep(
        model,
        settings.adam,
        max_norm=settings.max_grad_norm,
        num_micro_batches=settings.passes,
        grid=grid,
        shares_moments=settings.parallel_optimizer,
        skip=settings.skip,
    )
    step.dropout = dropout
    return step


def zeros(settings: TrainSettings) -> Batch:
    """Return a micro-batch of the run's shapes."""
    ids_BL = np.zeros((settings.batch_size, settings.data.seq_length), np.int32)
    data = settings.data
    separate = not isinstance(data, DataSettings) or data.separate_documents
    resets = isinstance(data, DataSettings) and data.reset_position_ids
    return Batch(
        input_ids_BL=ids_BL,
        labels_BL=ids_BL,
        weights_BL=ids_BL.astype(np.float32),
        position_ids_BL=ids_BL if resets else None,
        segment_ids_BL=ids_BL if separate else None,
    )


if __name__ == "__main__":
    main()
