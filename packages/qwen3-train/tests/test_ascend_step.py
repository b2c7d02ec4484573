"""Ascend's training step of any rank of any layout, compiled by MindSpore's front end: no numbers.

The trainer's own step is taken; where it would run a graph, the graph is compiled (`ascend_trainer`). Each
size has one layer of its own shapes per stage, and its whole vocabulary.
"""

import dataclasses

import ascend_trainer
import numpy as np
import pytest
from mindspore import Parameter
from mindspore.common.initializer import Zero, initializer

from qwen3_model.collectives import AscendGroup, AscendLink
from qwen3_model.config import SIZES
from qwen3_model.kernels import make_kernels
from qwen3_model.layout import Layout
from qwen3_model.lora import add_lora
from qwen3_model.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.parallel.grid import WorldSum, make_grid
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.settings.skip import SkipSettings
from qwen3_train.step import Evaluation, TrainStep

LENGTH = 64
ADAM = AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
TINY = dataclasses.replace(
    SIZES["0.6B"], hidden_size=128, intermediate_size=256, num_heads=8, head_dim=16, vocab_size=512
)
CONFIGS = {"tiny": TINY} | SIZES | {"tiny untied": dataclasses.replace(TINY, tie_word_embeddings=False)}
FORWARD = {"FlashAttentionScore", "RmsNorm", "RotaryPositionEmbedding", "Swiglu"}
BACKWARD = {"FlashAttentionScoreGrad", "RmsNormGrad", "RotaryPositionEmbeddingGrad", "SwigluGrad"}


@pytest.fixture
def graphs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a refused graph is written to the working directory

    def lazy(name, weight):
        return Parameter(initializer(Zero(), weight.shape, weight.dtype), name=name, requires_grad=False)

    # Otherwise 32B's moments would take 4 GB, of which nothing is used.
    monkeypatch.setattr("qwen3_train.optimizer._moment", lazy, raising=False)
    monkeypatch.setattr(
        "qwen3_train.step._sum_of_gradients",
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


def rank_of(
    size, layout, rank, *, passes=1, shares_moments=False, skip=None, change=None, float32_residual=False
):
    config = dataclasses.replace(CONFIGS[size], num_layers=layout.pp, max_position_embeddings=LENGTH)
    grid = make_grid("Ascend", config, layout, (), rank)
    model = Qwen3ForCausalLM(
        config, make_kernels("Ascend", float32_residual=float32_residual), tp=grid.tp, part=grid.part
    )
    if change is not None:
        change(model)
    step = TrainStep(
        model, ADAM, max_norm=1.0, num_micro_batches=passes, grid=grid, shares_moments=shares_moments,
        skip=skip,
    )  # fmt: skip
    return model, grid, step


def operators(graphs):
    return {name.split(":")[2] for graph in graphs for name in graph.operators if name.startswith("REF")}


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("size", ["tiny", *SIZES])
def test_a_rank_of_every_size_compiles_its_step(graphs, size, tp):
    layout = Layout(tp=tp, sequence_parallel=tp > 2)
    _, _, step = rank_of(size, layout, tp - 1)
    step.run([a_batch(documents=tp == 1)], lr=1e-3, step=1)
    found = operators(graphs)
    assert found >= FORWARD | BACKWARD | {"AdamW"}
    assert ("AllReduce" in found) == (tp > 1)
    assert ({"AllGather", "ReduceScatter"} <= found) == (tp > 2)


SKIP = SkipSettings(norm_limit=3.0, most_in_row=10, stops_at_nan=False)
PARTS = {
    "one that skips steps": (Layout(), 0, {"skip": SKIP}, set()),
    "several passes of shards that skip steps": (
        Layout(dp=2, tp=2), 3, {"passes": 2, "shares_moments": True, "skip": SKIP}, {"AllGather"},
    ),
    "replica with its share of the moments": (Layout(dp=2), 1, {"shares_moments": True}, {"AllGather"}),
    "several passes": (Layout(), 0, {"passes": 2}, set()),
    "several passes of shards": (Layout(dp=2, tp=2), 3, {"passes": 2, "shares_moments": True}, {"AllGather"}),
    "first stage": (Layout(pp=2), 0, {"passes": 2}, {"Send", "Receive"}),
    "last stage": (Layout(pp=2), 1, {"passes": 2}, {"Send", "Receive"}),
    "middle stage of shards": (
        Layout(pp=3, tp=2, sequence_parallel=True), 2, {"passes": 3}, {"Send", "Receive", "ReduceScatter"},
    ),
    "middle stage that adds in float32": (
        Layout(pp=3), 1, {"passes": 3, "float32_residual": True}, {"Send", "Receive"},
    ),
    "last stage of everything": (
        Layout(dp=2, pp=2, tp=2, sequence_parallel=True), 7, {"passes": 2, "shares_moments": True},
        {"Send", "Receive", "ReduceScatter", "AllGather", "AllReduce"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", ["tiny", "tiny untied"])
@pytest.mark.parametrize("part", PARTS)
def test_a_rank_of_every_kind_compiles_steps_and_evaluation(graphs, size, part):
    layout, rank, options, exchanges = PARTS[part]
    model, grid, step = rank_of(size, layout, rank, **options)
    batch = a_batch(documents=True)
    step.run([batch] * options.get("passes", 1), lr=1e-3, step=1)
    assert operators(graphs) >= FORWARD | BACKWARD | {"AdamW"} | exchanges
    before = len(graphs)
    Evaluation(model, grid).run(batch)
    assert len(graphs) > before
    WorldSum(grid.world).add(1.0)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
def test_recomputed_layers_and_adapters_compile(graphs, adapters, sequence_parallel):
    def change(model):
        if adapters:
            add_lora(model, ["model.layers.0.self_attn.q_proj"], rank=8, alpha=16, dropout=0.0)
            for name, parameter in model.parameters_and_names():
                parameter.requires_grad = "lora" in name
        for layer in model.model.layers:
            layer.recompute()

    layout = Layout(tp=2, sequence_parallel=sequence_parallel)
    _, _, step = rank_of("0.6B", layout, 0, change=change)
    step.run([a_batch()], lr=1e-3, step=1)
    assert operators(graphs) >= FORWARD | BACKWARD | {"AdamW"}


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
    _, _, step = rank_of("tiny", Layout(tp=2, sequence_parallel=True), 0)
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        step.run([a_batch()], lr=1e-3, step=1)


def test_a_stage_that_receives_other_rows_does_not_compile(monkeypatch, graphs):
    receive = AscendLink.receive
    monkeypatch.setattr(
        AscendLink, "receive", lambda link, shape, dtype: receive(link, (shape[0] - 1, *shape[1:]), dtype)
    )
    _, _, step = rank_of("tiny", Layout(pp=2), 1, passes=2)
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        step.run([a_batch()] * 2, lr=1e-3, step=1)
