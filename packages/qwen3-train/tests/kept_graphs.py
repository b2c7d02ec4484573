"""Let the runs of one process take over the compiled graphs of an earlier run of the same settings.

Compiling is nine tenths of a tiny run. The weights are filled anew and the moments are zeros again, as in a
new process; what a run reads, computes and writes is its own. Runs of adapters compile anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.loss import loss_chunks
from qwen3_train.parallel.grid import Grid
from qwen3_train.settings.run import TrainSettings
from qwen3_train.step.step import Evaluation, TrainStep
from qwen3_train.trainer import trainer


@dataclass
class Graphs:
    """What one run has compiled."""

    key: object
    model: Qwen3ForCausalLM
    grid: Grid
    step: TrainStep | None = None
    evaluation: Evaluation | None = None


@contextmanager
def kept_graphs() -> Iterator[None]:
    """Keep the graphs of the runs of this process as long as this lasts."""
    kept: list[Graphs] = []
    make_model, make_step = trainer.make_model, trainer.make_step

    def model_of(settings, rank, *arguments):
        key = _key(settings, rank)
        for graphs in kept:
            if key is not None and graphs.key == key:
                return graphs.model, graphs.grid
        graphs = Graphs(key, *make_model(settings, rank, *arguments))
        kept.append(graphs)
        return graphs.model, graphs.grid

    def step_of(settings, model, grid):
        graphs = _graphs_of(kept, model)
        if graphs.step is None:
            graphs.step = make_step(settings, model, grid)
            return graphs.step
        for moment in graphs.step.moments().values():
            ops.assign(moment, Tensor(np.zeros(moment.shape, np.float32)))
        graphs.step.num_skipped = 0
        return graphs.step

    def evaluation_of(model, grid):
        graphs = _graphs_of(kept, model)
        graphs.evaluation = graphs.evaluation or Evaluation(model, grid)
        return graphs.evaluation

    trainer.make_model, trainer.make_step, trainer.Evaluation = model_of, step_of, evaluation_of
    try:
        yield
    finally:
        trainer.make_model, trainer.make_step, trainer.Evaluation = make_model, make_step, Evaluation


def _graphs_of(kept: list[Graphs], model: Qwen3ForCausalLM) -> Graphs:
    return next(graphs for graphs in kept if graphs.model is model)


def _key(settings: TrainSettings, rank: int) -> object:
    """Return what the model and the step are made of; None for what is not kept."""
    if settings.lora is not None:
        return None
    return (
        rank, ms.get_context("mode"), loss_chunks.MOST_LOGITS, settings.device, settings.model,
        settings.ascend.float32_residual, settings.layout, settings.offset, settings.recompute, settings.adam,
        settings.max_grad_norm, settings.passes, settings.parallel_optimizer, settings.skip,
    )  # fmt: skip
