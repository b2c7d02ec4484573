"""The backward pass of a pipeline stage out of kept inputs of its layers gives what it gives without them."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor

from qwen3_model.config import SIZES
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.ranks.layout import Part
from qwen3_train.step.stage_graphs import Backward, Forward

CONFIG = dataclasses.replace(
    SIZES["0.6B"],
    hidden_size=24,
    intermediate_size=40,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=64,
)
LENGTH, LAYERS = 6, 2


def make_stage(*, is_first):
    ms.set_context(mode=ms.GRAPH_MODE)
    config = dataclasses.replace(CONFIG, num_layers=8)
    first = 0 if is_first else 2
    part = Part(layers=range(first, first + LAYERS), is_first=is_first, is_last=False)
    model = Qwen3ForCausalLM(config, part=part)
    rng = np.random.default_rng(5)
    for weight in model.get_parameters():
        weight.set_data(Tensor(rng.normal(0, 0.1, weight.shape).astype(np.float32)))
    return model


@pytest.mark.parametrize("is_first", [True, False])
def test_kept_inputs_change_no_gradient(is_first):
    rng = np.random.default_rng(6)
    ids = Tensor(rng.integers(0, 64, (1, LENGTH)).astype(np.int32))
    x_MD, grad_MD = (Tensor(rng.normal(0, 1, (LENGTH, 24)).astype(np.float32)) for _ in range(2))
    found = []
    for keeps in ((True, False), (True, True)):
        model = make_stage(is_first=is_first)
        weights = ParameterTuple(model.trainable_params())
        sums = ParameterTuple(
            [Parameter(Tensor(np.zeros(w.shape, np.float32)), name=f"sum.{w.name}") for w in weights]
        )
        out_MD, *kept = Forward(model, keeps)(None if is_first else x_MD, ids)
        assert len(kept) == sum(keeps) - (not is_first)
        kept = kept if is_first else [x_MD, *kept]
        given = Backward(model, weights, sums, keeps)(grad_MD, ids, None, None, *kept)
        found.append([each.asnumpy() for each in (out_MD, *(given, *sums)[is_first:])])
    for with_none, with_all in zip(*found, strict=True):
        assert np.abs(with_none).max() > 0
        np.testing.assert_array_equal(with_none, with_all)
