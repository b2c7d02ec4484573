"""A shard or a stage holds its part of the model, under the names and with the values of the whole."""

from dataclasses import replace

import numpy as np
import pytest

from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import WeightError
from qwen3_model.network.loading import fill_weights, init_model, own_part
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.ranks.layout import Part, shard_slices
from qwen3_model.ranks.shards import Shards, Whole

CONFIG = Qwen3Config(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=4, num_heads=4, num_kv_heads=2,
    head_dim=8, max_position_embeddings=64, rope_theta=1e4, rope_scaling=None, rms_norm_eps=1e-6,
    initializer_range=0.02, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    pad_token_id=None, dtype="float32",
)  # fmt: skip


class Seat:
    """A place in a group with which nothing is exchanged."""

    def __init__(self, size, index):
        self.size, self.index = size, index


@pytest.mark.parametrize("shard", [0, 1])
def test_a_shard_holds_its_slices_of_the_same_random_weights(shard):
    model = Qwen3ForCausalLM(CONFIG, tp=Shards(Seat(2, shard), sequence_parallel=False))
    init_model(model, 5)
    held = {name: parameter.asnumpy() for name, parameter in model.parameters_and_names()}
    assert held.keys() == CONFIG.weight_shapes().keys()
    for name, values in init_weights(CONFIG, 5):
        part = values[shard_slices(name, values.shape, tp=2, shard=shard)]
        np.testing.assert_array_equal(held[name], part, err_msg=name)
    assert held["model.layers.0.self_attn.o_proj.weight"].shape == (16, 16)
    assert held["model.embed_tokens.weight"].shape == (16, 16)


@pytest.mark.parametrize("is_tied", [False, True])
def test_stages_together_hold_each_weight_once_and_a_tied_embedding_twice(is_tied):
    config = replace(CONFIG, tie_word_embeddings=is_tied)
    parts = [
        Part(layers=range(1), is_last=False),
        Part(layers=range(1, 3), is_first=False, is_last=False),
        Part(layers=range(3, 4), is_first=False),
    ]
    names = []
    for part in parts:
        model = Qwen3ForCausalLM(config, part=part)
        init_model(model, 5)
        weights = dict(init_weights(config, 5))
        for name, parameter in model.parameters_and_names():
            names.append(name)
            assert parameter.name == name
            np.testing.assert_array_equal(parameter.asnumpy(), weights[name], err_msg=name)
    twice = ["model.embed_tokens.weight"] if is_tied else []
    assert sorted(names) == sorted([*config.weight_shapes(), *twice])


def test_a_part_still_refuses_what_is_no_weight_of_the_model():
    model = Qwen3ForCausalLM(CONFIG, part=Part(layers=range(2), is_last=False))
    whole = {name: ("F32", values) for name, values in init_weights(CONFIG, 0)}
    assert own_part(model, whole).keys() == dict(model.parameters_and_names()).keys()
    wrong = whole | {"model.layers.3.mlp.up_proj.weight": ("F32", np.zeros((2, 2), np.float32))}
    with pytest.raises(WeightError, match=r"unexpected model\.layers\.3\.mlp\.up_proj\.weight"):
        fill_weights(model, own_part(model, wrong), "here")


def test_partial_gradients_are_those_of_norms_on_split_heads_or_rows():
    names = [*CONFIG.layer_weight_shapes(0), "model.norm.weight"]
    split = Shards(Seat(2, 0), sequence_parallel=False)
    assert [n.split(".")[-2] for n in names if split.is_partial(n)] == ["q_norm", "k_norm"]
    rows = Shards(Seat(2, 0), sequence_parallel=True)
    assert sorted(n.split(".")[-2] for n in names if rows.is_partial(n)) == [
        "input_layernorm", "k_norm", "norm", "post_attention_layernorm", "q_norm",
    ]  # fmt: skip
    assert not any(Whole().is_partial(n) for n in names)
