"""Layers share a graph where they are equal and only there; the numbers stay those of each compiled alone."""

import mindspore as ms
import numpy as np
import pytest
from train_inputs import TINY_MODEL

from qwen3_model.network.loading import init_model
from qwen3_model.network.lora import add_lora, init_lora
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.settings.model import read_model
from qwen3_train.step import step as step_module
from qwen3_train.step.shared_graphs import share_layer_graphs
from qwen3_train.step.step import TrainStep

CONFIG = read_model(TINY_MODEL | {"num_hidden_layers": 3}, None)


def make_model(adapted=(), dropout=0.0):
    ms.set_context(mode=ms.GRAPH_MODE)
    model = Qwen3ForCausalLM(CONFIG)
    init_model(model, 3)
    if adapted:
        modules = [f"model.layers.{i}.self_attn.q_proj" for i in adapted]
        switch = add_lora(model, modules, rank=2, alpha=4, dropout=dropout)
        init_lora(model, a_init="normal", b_init="normal", seed=0)
        if switch is not None:
            switch.switch_on(1)
    return model


def keys(model):
    share_layer_graphs(model)
    return [layer.cell_init_args for layer in model.model.layers]


def test_equal_layers_share_and_others_do_not():
    first, second, third = keys(make_model())
    assert first == second == third
    first, second, third = keys(make_model(adapted=(0, 2)))
    assert first == third != second
    assert len(set(keys(make_model(adapted=(0, 1, 2), dropout=0.5)))) == 3  # each drops other inputs
    model = make_model()
    model.model.layers[1].recompute()
    first, second, third = keys(model)
    assert first == third != second
    model = make_model()
    next(model.model.layers[2].get_parameters()).requires_grad = False
    first, second, third = keys(model)
    assert first == second != third


@pytest.mark.parametrize(("adapted", "dropout"), [((), 0.0), ((0, 2), 0.0), ((0, 1, 2), 0.5)])
def test_steps_are_bit_for_bit_those_of_layers_alone(monkeypatch, adapted, dropout):
    text = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 9)).astype(np.int32)
    batch = Batch(text[:, :-1].copy(), text[:, 1:].copy(), np.full((2, 8), 1 / 16, np.float32), None, None)
    adam = AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)

    def run():
        step = TrainStep(make_model(adapted, dropout), adam, max_norm=1.0, num_micro_batches=1)
        results = [step.run([batch], 1e-2, number) for number in (1, 2, 3)]
        return results, {name: weight.asnumpy() for name, weight in step.weights.items()}

    shared, shared_weights = run()
    monkeypatch.setattr(step_module, "share_layer_graphs", lambda _: None)
    alone, alone_weights = run()
    assert shared == alone
    assert shared[-1].loss < shared[0].loss
    for name, weight in alone_weights.items():
        np.testing.assert_array_equal(shared_weights[name], weight, err_msg=name)
