"""Let the runs of one process take over the compiled graphs of an earlier run of the same settings.

Compiling is nine tenths of a tiny run. The weights are filled anew and the moments are zeros again, as in a
new process; what a run reads, computes and writes is its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from qwen3_model.network.lora import LoraDropout, init_lora
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.checkpoints.weights import load_weights
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
    dropout: LoraDropout | None = None


class WithoutAdapters:
    """A model with adapters, as if it had none: what their base is loaded into."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def parameters_and_names(self):
        own = self.model.config.weight_shapes()
        return [(name, each) for name, each in self.model.parameters_and_names() if name in own]


@contextmanager
def kept_graphs() -> Iterator[None]:
    """Keep the graphs of the runs of this process as long as this lasts."""
    kept: list[Graphs] = []
    make_model, make_step, start_adapters = trainer.make_model, trainer.make_step, trainer.start_adapters

    def model_of(settings, rank, *arguments):
        key = _key(settings, rank)
        for graphs in kept:
            if graphs.key == key and graphs.step is not None:
                return graphs.model, graphs.grid
        graphs = Graphs(key, *make_model(settings, rank, *arguments))
        kept.append(graphs)
        return graphs.model, graphs.grid

    def dropout_of(model, run, reader):
        graphs, lora = _graphs_of(kept, model), run.settings.lora
        if graphs.step is None:
            graphs.dropout = start_adapters(model, run, reader)
        else:
            load_weights(WithoutAdapters(model), run.lora_base, run.settings, reader)
            init_lora(model, a_init=lora.a_init, b_init=lora.b_init, seed=run.settings.seed)
        return graphs.dropout

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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_model", model_of)
        patch.setattr(trainer, "start_adapters", dropout_of)
        patch.setattr(trainer, "make_step", step_of)
        patch.setattr(trainer, "Evaluation", evaluation_of)
        yield


def _graphs_of(kept: list[Graphs], model: Qwen3ForCausalLM) -> Graphs:
    return next(graphs for graphs in kept if graphs.model is model)


def _key(settings: TrainSettings, rank: int) -> object:
    """Return what the model and the step are made of."""
    return (
        rank, ms.get_context("mode"), loss_chunks.MOST_LOGITS, settings.device, settings.model,
        settings.ascend.float32_residual, settings.layout, settings.offset, settings.recompute, settings.adam,
        settings.max_grad_norm, settings.passes, settings.parallel_optimizer, settings.skip, settings.lora,
    )  # fmt: skip
