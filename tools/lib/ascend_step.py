"""Take two of the trainer's steps as one rank in a dry run, with zeros as weights and data; print the memory.

    python ascend_step.py CONFIG.yaml --key.key VALUE ...

Started by `ascend_record`, which has set the environment. The step is the trainer's own; weights, data and
checkpoints, which a dry run does not need, are not read.
"""

import json
import os
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np

from qwen3_model.device.simulation import read_simulation
from qwen3_train.data.batches import Batch
from qwen3_train.data.context_part import ContextPart
from qwen3_train.launch.run_arguments import read_config
from qwen3_train.settings.run import TrainSettings, read_settings
from qwen3_train.settings.token_files import DataSettings
from qwen3_train.step.rank_step import make_model, make_step
from qwen3_train.trainer.adapters import add_adapters
from qwen3_train.trainer.trainer import set_up_device


def main() -> None:
    """Run two steps and print peak and held bytes and the seconds of the first step as JSON."""
    path, *overrides = sys.argv[1:]
    simulation = read_simulation(os.environ)
    assert simulation is not None
    rank, num_ranks = simulation.rank, simulation.num_ranks
    settings = read_settings(read_config(Path(path), overrides), worker_num=num_ranks, simulation=simulation)
    set_up_device(settings.device, settings.ascend, graph_mode=True, is_worker=num_ranks > 1)
    model, grid = make_model(settings, rank)
    dropout = add_adapters(model, settings.lora) if settings.lora else None
    step = make_step(settings, model, grid)
    step.dropout = dropout
    part = ContextPart.of_rank(grid.layout, grid.replica)
    batches = [part.part_of(zeros(settings))] * settings.passes
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
