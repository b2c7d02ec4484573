"""Ascend's training step at the widths of every size, compiled by MindSpore's front end: no numbers.

The trainer's own step is taken; where it would run a graph, the graph is compiled (`ascend_trainer`). Each
size has one layer of its own shapes, and an eighth of its vocabulary. `tests/test_ascend_dry_run.py` takes
the kinds of ranks and runs through the backend.
"""

import dataclasses

import ascend_trainer
import numpy as np
import pytest
from mindspore import Parameter
from mindspore.common.initializer import Zero, initializer

from qwen3_model.config import SIZES
from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.ranks.collectives import AscendGroup, AscendLink
from qwen3_model.ranks.layout import Layout
from qwen3_train.data.batches import Batch
from qwen3_train.parallel.grid import make_grid
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.step.step import TrainStep

LENGTH = 64
ADAM = AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
TINY = dataclasses.replace(
    SIZES["0.6B"], hidden_size=128, intermediate_size=256, num_heads=8, head_dim=16, vocab_size=512
)
CONFIGS = {"tiny": TINY} | {
    size: dataclasses.replace(config, vocab_size=config.vocab_size // 8) for size, config in SIZES.items()
}
FORWARD = {"FlashAttentionScore", "RmsNorm", "RotaryPositionEmbedding", "Swiglu"}
BACKWARD = {"FlashAttentionScoreGrad", "RmsNormGrad", "RotaryPositionEmbeddingGrad", "SwigluGrad"}


@pytest.fixture
def graphs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a refused graph is written to the working directory

    def lazy(name, weight):
        return Parameter(initializer(Zero(), weight.shape, weight.dtype), name=name, requires_grad=False)

    # Otherwise 32B's moments would take 4 GB, of which nothing is used.
    monkeypatch.setattr("qwen3_train.update.optimizer._moment", lazy, raising=False)
    monkeypatch.setattr(
        "qwen3_train.step.step._sum_of_gradients",
        lambda name, weight: lazy(f"accu_grads.{name}", weight),
        raising=False,
    )
    return ascend_trainer.install(monkeypatch)


def a_batch(*, documents=False):
    ids_BL = np.zeros((1, LENGTH), np.int32)
    extra = ids_BL if documents else None
    return Batch(
        input_ids_BL=ids_BL, labels_BL=ids_BL, weights_BL=np.ones((1, LENGTH), np.float32),
        position_ids_BL=extra, segment_ids_BL=extra,
    )  # fmt: skip


def step_of(size, layout, rank, *, passes=1):
    config = dataclasses.replace(CONFIGS[size], num_layers=layout.pp, max_position_embeddings=LENGTH)
    grid = make_grid("Ascend", config, layout, (), rank)
    model = Qwen3ForCausalLM(config, make_kernels("Ascend"), tp=grid.tp, part=grid.part)
    return TrainStep(model, ADAM, max_norm=1.0, num_micro_batches=passes, grid=grid)


def operators(graphs):
    return {name.split(":")[2] for graph in graphs for name in graph.operators if name.startswith("REF")}


# Every size with the fewest heads that a rank has of it, the smallest and the largest alone as well; the
# forward pass of every size alone is compiled in qwen3-model's test_ascend_kernels.
@pytest.mark.parametrize(("size", "tp"), [*((size, 8) for size in SIZES), ("0.6B", 1), ("32B", 1)])
def test_a_rank_of_every_size_compiles_its_step(graphs, size, tp):
    layout = Layout(tp=tp, sequence_parallel=tp > 2)
    step = step_of(size, layout, tp - 1)
    step.run([a_batch(documents=tp == 1)], lr=1e-3, step=1)
    found = operators(graphs)
    assert found >= FORWARD | BACKWARD | {"AdamW"}
    assert ("AllReduce" in found) == (tp > 1)
    assert ({"AllGather", "ReduceScatter"} <= found) == (tp > 2)


def summed(group, x):
    return group.sum(x)


def gathered(group, x):
    return group._gather(x)


def scattered(group, x):
    return group._scatter(x)


@pytest.mark.parametrize(
    ("method", "wrong"), [("gather_rows", summed), ("gather_rows", scattered), ("scatter_rows", summed),
                          ("scatter_rows", gathered), ("sum", gathered)],
)  # fmt: skip
def test_a_wrong_exchange_does_not_compile(monkeypatch, graphs, method, wrong):
    monkeypatch.setattr(AscendGroup, method, wrong)
    step = step_of("tiny", Layout(tp=2, sequence_parallel=True), 0)
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        step.run([a_batch()], lr=1e-3, step=1)


def test_a_stage_that_receives_other_rows_does_not_compile(monkeypatch, graphs):
    receive = AscendLink.receive
    monkeypatch.setattr(
        AscendLink, "receive", lambda link, shape, dtype: receive(link, (shape[0] - 1, *shape[1:]), dtype)
    )
    step = step_of("tiny", Layout(pp=2), 1, passes=2)
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        step.run([a_batch()] * 2, lr=1e-3, step=1)
