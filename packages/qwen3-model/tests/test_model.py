"""The whole model against transformers, and what holds for any language model."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from qwen3_model.network.model import Qwen3ForCausalLM

ATOL_LOGITS = 1e-4  # float32 through two layers, logits up to ten
RTOL_GRADIENT = 1e-3
VARIANTS = ["tied", "untied", "yarn"]


def ints(array):
    return Tensor(np.ascontiguousarray(array, np.int32))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def found(variant, golden):
    return golden(variant)


@pytest.fixture(scope="module")
def model(variant, make_model):
    return make_model(variant)


def test_weights_carry_hugging_faces_names_and_shapes(found, model):
    ours = {name: tuple(parameter.shape) for name, parameter in model.parameters_dict().items()}
    assert list(ours.items()) == list(found.config.weight_shapes().items())
    assert ours.keys() == found.weights.keys()


def test_logits_are_those_of_transformers_compiled_and_not(found, model, assert_close):
    ids_BL, theirs = ints(found.tensors["model.ids"]), found.tensors["model.logits"]
    assert_close(model(ids_BL).asnumpy(), theirs, atol=ATOL_LOGITS, what="eager")
    assert_close(ms.jit(model.construct)(ids_BL).asnumpy(), theirs, atol=ATOL_LOGITS, what="compiled")
    assert np.abs(theirs).max() > 1, "the comparison needs logits of some size"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_does_not_change_the_real_tokens(found, model, assert_close, side):
    part = {name: found.tensors[f"padded.{side}.{name}"] for name in ("ids", "real", "positions", "logits")}
    ours = model(ints(part["ids"]), ints(part["positions"]), ints(part["real"])).asnumpy()
    assert_close(ours * part["real"][..., None], part["logits"], atol=ATOL_LOGITS)


def test_every_gradient_is_that_of_torch(found, model, assert_close):
    ids_BL, labels_BL = found.tensors["train.ids"], found.tensors["train.labels"]
    targets_M = ints(labels_BL[:, 1:].reshape(-1))
    width = found.config.vocab_size

    def loss_of(ids_BL):
        return ops.cross_entropy(model(ids_BL)[:, :-1].reshape(-1, width), targets_M, ignore_index=-100)

    parameters = model.trainable_params()
    loss, gradients = ms.jit(ms.value_and_grad(loss_of, None, parameters))(ints(ids_BL))
    assert float(loss) == pytest.approx(float(found.tensors["train.loss"][0]), rel=1e-5)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        theirs = found.tensors[f"gradients.{parameter.name}"]
        largest = float(np.abs(theirs).max())
        assert largest > 0
        assert_close(gradient.asnumpy(), theirs, atol=RTOL_GRADIENT * largest, what=parameter.name)


def test_a_token_cannot_see_the_future(make_model):
    model = make_model("tied")
    ids_BL = np.arange(12, dtype=np.int32).reshape(1, 12)
    changed_BL = ids_BL.copy()
    changed_BL[0, 7] += 1
    before, after = model(ints(ids_BL)).asnumpy(), model(ints(changed_BL)).asnumpy()
    np.testing.assert_array_equal(after[:, :7], before[:, :7])
    assert np.abs(after[:, 7:] - before[:, 7:]).max() > 1e-3


def test_documents_packed_in_a_row_do_not_see_each_other(make_model, assert_close):
    model = make_model("untied")
    first, second = np.arange(2, 7), np.arange(30, 38)
    packed_BL = np.concatenate([first, second])[None]
    positions_BL = np.concatenate([np.arange(5), np.arange(8)])[None]
    segments_BL = np.repeat([1, 2], [5, 8])[None]
    packed = model(ints(packed_BL), ints(positions_BL), ints(segments_BL)).asnumpy()[0]
    alone = [model(ints(part[None])).asnumpy()[0] for part in (first, second)]
    assert_close(packed, np.concatenate(alone), atol=1e-5)


def test_the_logits_of_one_place_a_row_are_those_of_all_places(make_model):
    model = make_model("tied")
    ids_BL = ints(np.arange(20).reshape(2, 10))
    everything = model(ids_BL).asnumpy()
    last = model(ids_BL, last_B=ints([3, 9])).asnumpy()
    np.testing.assert_allclose(last, everything[[0, 1], [3, 9]], atol=1e-6)


def test_a_tied_model_has_no_head_of_its_own(golden):
    names = Qwen3ForCausalLM(golden("tied").config).parameters_dict().keys()
    assert "lm_head.weight" not in names
