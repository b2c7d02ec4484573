"""Adapters: nothing at first, the fused weight afterwards, and gradients for themselves alone."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.loading import fill, init_model
from qwen3_model.network.lora import LoraDropout, LoraLinear, add_lora, fresh_half, init_lora
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.ranks.layout import Part, shard_slices
from qwen3_model.ranks.shards import Shards

ATOL_FUSED = 1e-5  # another order of multiplication
RAW = {
    "vocab_size": 48, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True, "initializer_range": 0.2,
    "model_type": "qwen3",
}  # fmt: skip
IDS = Tensor(np.random.default_rng(0).integers(0, 48, (2, 9)).astype(np.int32))
LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens")
RANK, ALPHA = 3, 6.0


class Seat:
    """A place in a group with which nothing is exchanged."""

    def __init__(self, size, index):
        self.size, self.index = size, index


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def base_model(*, tied=True):
    model = Qwen3ForCausalLM(dataclasses.replace(Qwen3Config.from_hf(RAW), tie_word_embeddings=tied))
    init_model(model, 1)
    return model


def modules_of(model):
    names = [name.removesuffix(".weight") for name, _ in model.parameters_and_names()]
    return [name for name in names if name.rpartition(".")[2] in LEAVES]


def adapted_model(*, tied=True, dropout=0.0, **inits):
    model = base_model(tied=tied)
    switch = add_lora(model, modules_of(model), rank=RANK, alpha=ALPHA, dropout=dropout)
    init_lora(model, **{"a_init": "normal", "b_init": "zeros", "seed": 2} | inits)
    return model, switch


class Compiled:
    """A model and its logits, from one graph whatever its weights are."""

    def __init__(self, model):
        self.model, self.run = model, ms.jit(model.construct)

    def logits(self):
        return self.run(IDS).asnumpy()


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


@pytest.fixture(scope="module")
def base(tied):
    return Compiled(base_model(tied=tied))


@pytest.fixture(scope="module")
def adapted(tied):
    return Compiled(adapted_model(tied=tied)[0])


def test_adapters_change_nothing_at_the_start_and_then_act_as_the_fused_weights(base, adapted):
    before = base.logits()
    assert np.array_equal(adapted.logits(), before)
    model = adapted.model
    names = [name for name, _ in model.parameters_and_names()]
    assert "model.layers.1.mlp.down_proj.lora_A.weight" in names
    assert all(name == parameter.name for name, parameter in model.parameters_and_names())

    init_lora(model, a_init="xavier_normal", b_init="xavier_normal", seed=2)
    weights = {name: parameter.asnumpy() for name, parameter in model.parameters_and_names()}
    for name, parameter in base.model.parameters_and_names():
        path = name.removesuffix(".weight")
        if f"{path}.lora_A.weight" in weights:
            change = weights[f"{path}.lora_B.weight"] @ weights[f"{path}.lora_A.weight"] * (ALPHA / RANK)
            change = change.T if path == "model.embed_tokens" else change
            fill(parameter, "F32", weights[name] + change)
    found, fused = adapted.logits(), base.logits()
    assert np.abs(found - fused).max() < ATOL_FUSED * np.abs(fused).max()
    assert np.abs(found - before).max() > 0.1


def test_dropout_depends_on_the_tick_alone_and_drops_the_share_that_it_should():
    x = np.random.default_rng(3).standard_normal((64, 80)).astype(np.float32)
    switch = LoraDropout(0.25, PortableKernels())
    call = ms.jit(switch.construct)

    def dropped(tick, salt=0):
        switch.switch_on(tick)
        return call(Tensor(x), salt).asnumpy()

    first = dropped(5)
    kept = first != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.03)  # 4 standard deviations of 5120 draws
    np.testing.assert_allclose(first[kept], x[kept] / 0.75, rtol=1e-6)
    assert np.array_equal(first, dropped(5))
    for other in (dropped(6), dropped(5, salt=1)):
        assert (kept == (other != 0)).mean() == pytest.approx(0.625, abs=0.03)  # 0.75^2 + 0.25^2
    # A rank that has the columns from 32 on drops what one process drops there.
    switch.switch_on(5)
    assert np.array_equal(call(Tensor(x[:, 32:]), 0, 32).asnumpy(), first[:, 32:])
    switch.switch_off()
    assert np.array_equal(call(Tensor(x), 0).asnumpy(), x)


def test_first_values_depend_on_name_and_seed_and_follow_the_init():
    shape = (30, 50)
    assert fresh_half("a", shape, "normal", 0).std() == pytest.approx(0.01, rel=0.1)
    assert np.array_equal(fresh_half("a", shape, "normal", 0), fresh_half("a", shape, "normal", 0))
    assert not np.array_equal(fresh_half("a", shape, "normal", 0), fresh_half("b", shape, "normal", 0))
    assert np.abs(fresh_half("a", shape, "he_uniform", 0)).max() <= (6 / 50) ** 0.5
    assert np.abs(fresh_half("a", shape, "xavier_uniform", 0)).max() <= (6 / 80) ** 0.5
    assert fresh_half("a", shape, "zeros", 0).sum() == 0
    assert fresh_half("a", shape, "ones", 0).sum() == 1500


def test_a_shard_starts_with_its_slices_of_the_same_adapters():
    whole = {name: parameter.asnumpy() for name, parameter in adapted_model()[0].parameters_and_names()}
    for shard in (0, 1):
        tp = Shards(Seat(2, shard), sequence_parallel=False)
        model = Qwen3ForCausalLM(Qwen3Config.from_hf(RAW), tp=tp)
        add_lora(model, modules_of(model), rank=RANK, alpha=ALPHA, dropout=0)
        init_lora(model, a_init="normal", b_init="xavier_uniform", seed=2)
        for name, parameter in model.parameters_and_names():
            if ".lora_A." in name:
                part = shard_slices(name, whole[name].shape, tp=2, shard=shard)
                np.testing.assert_array_equal(parameter.asnumpy(), whole[name][part], err_msg=name)
        shapes = {name: parameter.shape for name, parameter in model.parameters_and_names()}
        layer = "model.layers.0"
        assert shapes[f"{layer}.self_attn.q_proj.lora_B.weight"] == (16, RANK)
        assert shapes[f"{layer}.mlp.down_proj.lora_A.weight"] == (RANK, 20)
        assert shapes["model.embed_tokens.lora_A.weight"] == (RANK, 24)
        # Of the other halves, whole on each rank, a rank knows a part of the gradient.
        whole_halves = [name for name in shapes if ".lora_" in name and whole[name].shape == shapes[name]]
        assert whole_halves == [name for name in shapes if ".lora_" in name and tp.is_partial(name)]
        assert len(whole_halves) == 15


def test_a_stage_gives_its_own_modules_the_numbers_of_the_whole():
    part = Part(layers=range(1, 2), is_first=False)
    model = Qwen3ForCausalLM(Qwen3Config.from_hf(RAW), part=part)
    modules = modules_of(base_model())
    add_lora(model, modules, rank=RANK, alpha=ALPHA, dropout=0.1)
    salts = {path: cell.salt for path, cell in model.cells_and_names() if isinstance(cell, LoraLinear)}
    assert salts == {path: modules.index(path) for path in modules if ".layers.1." in path}


def test_what_cannot_carry_an_adapter_is_refused():
    with pytest.raises(ConfigError, match=r"model\.norm cannot carry an adapter"):
        add_lora(base_model(), ["model.norm"], rank=1, alpha=1, dropout=0)
