"""The loss in chunks of rows against the whole one: losses and the gradients of every weight."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn
from train_inputs import TINY_MODEL

from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.lora import add_lora, init_lora
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.loss.loss import TokenLoss
from qwen3_train.loss.loss_chunks import MOST_LOGITS, rows_of_chunk
from qwen3_train.settings.model import read_model

RTOL, ATOL = 1e-5, 1e-7  # sums in another order; 2e-6 was seen
VOCABULARY = TINY_MODEL["vocab_size"]
ROWS = 22  # of two samples of 11 tokens; in chunks of 5 rows, the last of 2


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


class Gradients(nn.Cell):
    def __init__(self, loss, weights):
        super().__init__(auto_prefix=False)
        self.loss_and_gradients = ms.value_and_grad(loss, None, weights)

    @ms.jit
    def construct(self, ids, labels, weights):
        return self.loss_and_gradients(ids, labels, weights)


def make_model(*, is_tied, adapted=()):
    config = read_model(TINY_MODEL | {"num_hidden_layers": 1, "tie_word_embeddings": is_tied}, None)
    model = Qwen3ForCausalLM(config, make_kernels("CPU"))
    weights = dict(init_weights(config, 3))
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(np.array(weights[name])))
    if adapted:
        add_lora(model, adapted, rank=3, alpha=6, dropout=0.0)
        init_lora(model, a_init="xavier_normal", b_init="xavier_normal", seed=1)
        for name, parameter in model.parameters_and_names():
            parameter.requires_grad = ".lora_" in name
    return model


def batch():
    rng = np.random.default_rng(0)
    ids_BL, labels_BL = rng.integers(0, VOCABULARY, (2, 2, ROWS // 2)).astype(np.int32)
    weights_BL = (rng.random((2, ROWS // 2)) * (rng.random((2, ROWS // 2)) > 0.3)).astype(np.float32)
    return Tensor(ids_BL), Tensor(labels_BL), Tensor(weights_BL / weights_BL.sum())


def losses_and_gradients(model, most_logits):
    trained = ParameterTuple([weight for weight in model.get_parameters() if weight.requires_grad])
    loss, gradients = Gradients(TokenLoss(model, most_logits=most_logits), trained)(*batch())
    names = [weight.name for weight in trained]
    return float(loss.asnumpy()), {
        name: gradient.asnumpy() for name, gradient in zip(names, gradients, strict=True)
    }


@pytest.mark.parametrize(
    ("is_tied", "adapted"),
    [
        (True, ()),
        (False, ()),
        (False, ("lm_head", "model.layers.0.self_attn.q_proj")),
        (False, ("model.layers.0.self_attn.q_proj",)),
        (True, ("model.embed_tokens", "model.layers.0.self_attn.q_proj")),
    ],
    ids=["tied", "untied", "adapter on the head", "frozen head", "adapter on a tied embedding"],
)
def test_chunks_give_the_whole_loss_and_all_gradients(is_tied, adapted):
    model = make_model(is_tied=is_tied, adapted=adapted)
    wanted, gradients = losses_and_gradients(model, VOCABULARY * ROWS)
    found, chunked = losses_and_gradients(model, VOCABULARY * 5)
    assert found == pytest.approx(wanted, rel=RTOL)
    assert found != 0
    assert chunked.keys() == gradients.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(chunked[name], gradient, rtol=RTOL, atol=ATOL, err_msg=name)
        assert np.abs(gradient).max() > 0, name


def test_evaluation_in_chunks_gives_the_same_loss():
    model = make_model(is_tied=True)
    losses = [
        TokenLoss(model, has_gradients=False, most_logits=most)(*batch()).asnumpy()
        for most in (VOCABULARY * ROWS, VOCABULARY * 5)
    ]
    np.testing.assert_allclose(*losses, rtol=RTOL)


@pytest.mark.parametrize(
    ("rows", "width", "wanted"),
    [
        (4096, 4096, 4096),
        (4096, 18_992, 4096),
        (4096, 151_936, 820),
        (131_072, 18_992, 6899),
        (3, 1 << 28, 1),
    ],
)
def test_a_chunk_has_no_more_logits_than_are_allowed(rows, width, wanted):
    assert rows_of_chunk(rows, width) == wanted
    assert wanted * width <= MOST_LOGITS + width or wanted == 1
