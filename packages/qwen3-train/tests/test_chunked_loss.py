"""The loss in chunks of rows against the whole one: losses and the gradients of every weight."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn
from train_inputs import TINY_MODEL

from qwen3_model.checkpoints.fresh_weights import fresh_weight
from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.lora import add_lora, init_lora
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.ranks.layout import Part
from qwen3_train.loss.loss import TokenLoss
from qwen3_train.loss.loss_chunks import MOST_LOGITS, rows_of_chunk
from qwen3_train.settings.model import read_model

RTOL, ATOL = 5e-6, 2.5e-8  # exponentials that are off by as much, and sums of numbers near zero
ROUNDING = 2.0**-24  # of float32, of each addition
VOCABULARY = TINY_MODEL["vocab_size"]
ROWS = 22  # of two samples of 11 tokens; in chunks of 8 rows, the last of 6


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


def make_model(*, is_tied, adapted=(), frozen=()):
    """Embedding, norm and head, which are all that the loss's gradients pass first."""
    config = read_model(TINY_MODEL | {"tie_word_embeddings": is_tied}, None)
    model = Qwen3ForCausalLM(config, make_kernels("CPU"), part=Part(layers=range(0)))
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(fresh_weight(config, name, 3)))
    if adapted:
        add_lora(model, adapted, rank=3, alpha=6, dropout=0.0)
        init_lora(model, a_init="xavier_normal", b_init="xavier_normal", seed=1)
    for name, parameter in model.parameters_and_names():
        parameter.requires_grad = name not in frozen and (not adapted or ".lora_" in name)
    return model


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    ids_BL, labels_BL = rng.integers(0, VOCABULARY, (2, 2, ROWS // 2)).astype(np.int32)
    weights_BL = (rng.random((2, ROWS // 2)) * (rng.random((2, ROWS // 2)) > 0.3)).astype(np.float32)
    return Tensor(ids_BL), Tensor(labels_BL), weights_BL / weights_BL.sum()


class Case:
    """The loss of a model, whole or in chunks, and the gradients of its trained weights."""

    def __init__(self, model, most_logits):
        self.weights = ParameterTuple([weight for weight in model.get_parameters() if weight.requires_grad])
        self.gradients = Gradients(TokenLoss(model, most_logits=most_logits), self.weights)

    def __call__(self, ids_BL, labels_BL, weights_BL):
        loss, gradients = self.gradients(ids_BL, labels_BL, Tensor(weights_BL))
        names = [weight.name for weight in self.weights]
        return float(loss.asnumpy()), {
            name: gradient.asnumpy() for name, gradient in zip(names, gradients, strict=True)
        }


def whole(model):
    return Case(model, VOCABULARY * ROWS)


def in_chunks(model):
    return Case(model, VOCABULARY * 8)


def sizes_of_summands(loss, ids_BL, labels_BL, weights_BL):
    """Return how many tokens have a gradient, and for each weight the sum of their absolute values.

    The same graph gives a token's gradient where all others weigh nothing.
    """
    tokens, sizes = np.argwhere(weights_BL), {}
    for token in map(tuple, tokens):
        alone_BL = np.zeros_like(weights_BL)
        alone_BL[token] = weights_BL[token]
        for name, gradient in loss(ids_BL, labels_BL, alone_BL)[1].items():
            sizes[name] = sizes.get(name, 0) + np.abs(gradient)
    return len(tokens), sizes


def assert_same(found, wanted, num_tokens, sizes):
    """Compare gradients that are sums over tokens, taken in two orders.

    A sum of n numbers x in float32 is off by (n - 1) 2^-24 sum|x| at most, to first order, in whatever
    order (Higham, Accuracy and Stability of Numerical Algorithms, 4.2), however small it is itself.
    """
    for name, gradient in wanted.items():
        allowed = ATOL + RTOL * np.abs(gradient) + (num_tokens - 1) * ROUNDING * sizes[name]
        difference = np.abs(found[name] - gradient)
        assert (difference <= allowed).all(), f"{name}: {(difference / allowed).max():.2f} times the bound"
        assert np.abs(gradient).max() > 0, name


ADAPTED = {
    "adapter on the head": (False, "lm_head"),
    "adapter on a tied embedding": (True, "model.embed_tokens"),
}


@pytest.mark.parametrize("case", ["tied", "untied", *ADAPTED])
def test_chunks_give_the_whole_loss_and_all_gradients(case, batch):
    is_tied, *adapted = ADAPTED.get(case, (case == "tied",))
    model = make_model(is_tied=is_tied, adapted=adapted)
    reference = whole(model)
    loss, gradients = reference(*batch)
    bound = sizes_of_summands(reference, *batch)
    found, chunked = in_chunks(model)(*batch)
    assert found == pytest.approx(loss, rel=RTOL)
    assert found != 0
    assert chunked.keys() == gradients.keys()
    assert_same(chunked, gradients, *bound)
    if case == "tied":
        evaluation = TokenLoss(model, has_gradients=False, most_logits=VOCABULARY * 8)
        evaluated = evaluation(*batch[:2], Tensor(batch[2])).asnumpy()
        assert float(evaluated) == pytest.approx(loss, rel=RTOL)
    if case == "untied":
        frozen = make_model(is_tied=False, frozen=("lm_head.weight",))
        found, chunked = in_chunks(frozen)(*batch)
        assert found == pytest.approx(loss, rel=RTOL)
        del gradients["lm_head.weight"]
        assert chunked.keys() == gradients.keys()
        assert_same(chunked, gradients, *bound)


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
