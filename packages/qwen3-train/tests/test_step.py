"""The compiled step against torch and transformers (golden/make_golden.py) and against plain numpy.

MindSpore is imported once; the graphs are tiny.
"""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.network.kernels.ascend import AscendKernels
from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.kernels.portable_ops import num_rows
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.settings.lr_schedule import make_schedule
from qwen3_train.settings.model import read_model
from qwen3_train.step.step import Evaluation, TrainStep
from qwen3_train.update.gradients import OwnGradients
from qwen3_train.update.optimizer import AdamW, SumOfSquares, adam_scalars

ATOL_ADAM = 1e-7  # per step and element; torch rounds in another order
ATOL_CURVE = 1e-4  # twenty steps let rounding differences grow; 1.4e-6 was seen
ATOL_WEIGHTS = 1e-5  # after those steps; 7e-7 was seen
ATOL_LOSS = 1e-5  # reduction order
RTOL_NORM = 1e-4

GOLDEN = open_safetensors(Path(__file__).parent / "golden" / "train.safetensors")
ADAM = json.loads(GOLDEN.metadata["adam"])
SETTINGS = AdamSettings(**{key: ADAM[key] for key in ("beta1", "beta2", "eps", "weight_decay")})


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def golden_model():
    model = Qwen3ForCausalLM(read_model(json.loads(GOLDEN.metadata["model"]), None), make_kernels("CPU"))
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(np.array(GOLDEN.raw(f"weights.{name}"))))
    return model


def batch_of(text, mask=None, **changes):
    mask = np.ones(text[:, 1:].shape, np.float32) if mask is None else mask
    arguments = {"position_ids_BL": None, "segment_ids_BL": None} | changes
    return Batch(text[:, :-1].copy(), text[:, 1:].copy(), mask / mask.sum(), **arguments)


def cut(batch, parts):
    """Cut a batch into micro-batches; the weights already count the tokens of the whole step."""
    rows = len(batch.input_ids_BL) // parts
    pick = [slice(i * rows, (i + 1) * rows) for i in range(parts)]
    return [Batch(batch.input_ids_BL[p], batch.labels_BL[p], batch.weights_BL[p], None, None) for p in pick]


class _Update(ms.nn.Cell):
    def __init__(self, adam):
        super().__init__(auto_prefix=False)
        self.adam = adam

    @ms.jit
    def construct(self, rate, eps, decay, step, a, b):
        return self.adam(rate, eps, decay, step, (a, b))


def documented_adamw(var, m, v, max_v, gradient, step, lr, beta1, beta2, decay, eps, amsgrad, maximize):
    """Ascend's AdamW by the formula of its documentation, in float64."""
    assert max_v is v
    assert (amsgrad, maximize, step.dtype, step.shape) == (False, False, ms.int64, (1,))
    assert all(type(number) is float for number in (lr, beta1, beta2, decay, eps))
    w, g, t = var.asnumpy().astype(np.float64), gradient.asnumpy().astype(np.float64), int(step.asnumpy()[0])
    first = beta1 * m.asnumpy().astype(np.float64) + (1 - beta1) * g
    second = beta2 * v.asnumpy().astype(np.float64) + (1 - beta2) * g**2
    w = w * (1 - lr * decay) - lr * (first / (1 - beta1**t)) / (np.sqrt(second / (1 - beta2**t)) + eps)
    for parameter, values in ((var, w), (m, first), (v, second)):
        parameter.set_data(Tensor(values.astype(np.float32)))
    return var, m, v


def test_five_updates_on_ascend_equal_torch_adamw():
    """Its kernel is on no CPU: the same updates, operator by operator, with the documented formula."""
    kernels = AscendKernels()
    kernels._adamw = documented_adamw
    names = ("weight", "m", "v")
    for i in range(2):
        start = np.array(GOLDEN.raw(f"adamw.start.{i}"))
        held = [Parameter(Tensor(start * (name == "weight")), name=name) for name in names]
        for step in range(5):
            rate, eps, decay, count = adam_scalars(kernels, SETTINGS, ADAM["lr"], step + 1)
            gradient = Tensor(np.array(GOLDEN.raw(f"adamw.gradient.{step}.{i}")))
            own_decay = decay if start.ndim > 1 else None
            kernels.adamw(
                *held, gradient, float(rate), eps, own_decay, count, (SETTINGS.beta1, SETTINGS.beta2)
            )
            after, limit = GOLDEN.raw(f"adamw.after.{step}.{i}"), ATOL_ADAM * (step + 1)
            np.testing.assert_allclose(held[0].asnumpy(), after, rtol=limit, atol=limit)


def test_five_updates_equal_torch_adamw():
    kernels = PortableKernels
    weights = {
        f"w{i}": Parameter(Tensor(np.array(GOLDEN.raw(f"adamw.start.{i}"))), name=f"w{i}") for i in range(2)
    }
    update = _Update(AdamW(weights, SETTINGS, kernels()))
    for step in range(5):
        gradients = [Tensor(np.array(GOLDEN.raw(f"adamw.gradient.{step}.{i}"))) for i in range(2)]
        before = [weight.asnumpy().copy() for weight in weights.values()]
        update(*adam_scalars(update.adam.kernels, SETTINGS, ADAM["lr"], step + 1), *gradients)
        for i, weight in enumerate(weights.values()):
            after = GOLDEN.raw(f"adamw.after.{step}.{i}")
            assert np.abs(after - before[i]).max() > 1e-3  # the step moved it
            limit = ATOL_ADAM * (step + 1)
            np.testing.assert_allclose(weight.asnumpy(), after, rtol=limit, atol=limit)


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_twenty_steps_follow_transformers_and_torch(num_micro_batches):
    step = TrainStep(golden_model(), SETTINGS, max_norm=ADAM["max_norm"], num_micro_batches=num_micro_batches)
    section = {
        "type": "CosineWithWarmUpLR",
        "learning_rate": ADAM["lr"],
        "warmup_steps": int(GOLDEN.metadata["warmup"]),
    }
    schedule = make_schedule(section, run_steps=20)
    losses, norms = [], []
    for i, text in enumerate(GOLDEN.raw("curve.text")):
        assert schedule(i) == pytest.approx(float(GOLDEN.raw("curve.rates")[i]), rel=1e-12, abs=1e-15)
        result = step.run(cut(batch_of(text), num_micro_batches), schedule(i), i + 1)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    np.testing.assert_allclose(losses, GOLDEN.raw("curve.losses"), rtol=0, atol=ATOL_CURVE)
    np.testing.assert_allclose(norms, GOLDEN.raw("curve.norms"), rtol=RTOL_NORM)
    assert max(norms) > ADAM["max_norm"]  # clipping took part
    assert losses[-1] < losses[0] - 0.5
    for name, weight in step.weights.items():
        np.testing.assert_allclose(
            weight.asnumpy(), GOLDEN.raw(f"after.{name}"), rtol=0, atol=ATOL_WEIGHTS, err_msg=name
        )


def test_loss_is_the_mean_over_unmasked_tokens():
    model, rng = golden_model(), np.random.default_rng(0)
    text = np.array(GOLDEN.raw("curve.text")[0])
    mask = (rng.random(text[:, 1:].shape) < 0.5).astype(np.float32)
    logits = model(Tensor(text[:, :-1])).asnumpy().astype(np.float64)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    picked = np.take_along_axis(logits, text[:, 1:, None].astype(np.int64), -1)[..., 0]
    expected = ((log_z - picked) * mask).sum() / mask.sum()
    assert Evaluation(model).run(batch_of(text, mask)) == pytest.approx(expected, abs=ATOL_LOSS)


def test_separate_documents_have_the_loss_of_each_alone():
    evaluation = Evaluation(golden_model())
    text = np.array(GOLDEN.raw("curve.text")[0][:2])
    alone = [evaluation.run(batch_of(row[None])) for row in text]
    together = np.concatenate([text[0, :-1], text[1, :-1]])[None]
    labels = np.concatenate([text[0, 1:], text[1, 1:]])[None]
    length = text.shape[1] - 1
    segments = np.repeat([[0, 1]], length, axis=1).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), 2)[None]
    weights = np.full(labels.shape, 1 / (2 * length), np.float32)
    packed = evaluation.run(Batch(together, labels, weights, positions, segments))
    assert packed == pytest.approx(np.mean(alone), abs=ATOL_LOSS)


def test_the_squares_of_a_large_weight_are_summed_without_loss():
    # One row of this length comes out 2% off.
    value, size = np.float32(0.1), 2**25
    total = SumOfSquares((True,), PortableKernels())((Tensor(np.full((2**15, 2**10), value)),))
    assert float(total.asnumpy()[0]) == pytest.approx(size * float(value) ** 2, rel=5e-5)
    # As gradients are: a few large ones first, which the small ones must not vanish beside.
    values = np.sort(np.exp(2 * np.random.default_rng(0).standard_normal(2**17)))[::-1].astype(np.float32)
    total = SumOfSquares((True,), PortableKernels())((Tensor(values.reshape(2**12, 2**5)),))
    assert float(total.asnumpy()[0]) == pytest.approx((values.astype(np.float64) ** 2).sum(), rel=5e-6)
    sizes = (1, 2**22, 2**22 + 2, 2**27, 3 * 2**22)
    assert [num_rows(size, 2**22) for size in sizes] == [1, 1, 2, 32, 4]


class _Finish(ms.nn.Cell):
    """Norm, clipping and update of many weights, as a step has them."""

    def __init__(self, weights, max_norm):
        super().__init__(auto_prefix=False)
        self.adam = AdamW(weights, SETTINGS, PortableKernels())
        self.finish = OwnGradients(len(weights), max_norm, self.adam.kernels)

    @ms.jit
    def construct(self, rate, eps, decay, step, gradients):
        gradients, scale, norm, loss = self.finish(gradients, rate)
        return self.adam(rate, eps, decay, step, gradients, scale), norm, loss


@pytest.mark.parametrize(("max_norm", "factor"), [(10.0, 1.0), (1.0, 0.2), (None, 1.0)])
def test_gradients_are_scaled_to_the_limit_and_left_alone_below_it(max_norm, factor):
    gradients = (Tensor(np.array([[3.0]], np.float32)), Tensor(np.array([0.0, 4.0], np.float32)))
    weights = {f"w{i}": Parameter(Tensor(np.zeros(g.shape, np.float32))) for i, g in enumerate(gradients)}
    finish = _Finish(weights, max_norm)
    _, norm, _ = finish(*adam_scalars(PortableKernels(), SETTINGS, 1e-3, 1), gradients)
    assert float(norm.asnumpy()) == 5.0
    for gradient, m in zip(gradients, finish.adam.m, strict=True):
        expected = gradient.asnumpy() * (1 - SETTINGS.beta1) * factor
        np.testing.assert_allclose(m.asnumpy(), expected, rtol=1e-6)


def test_weights_of_a_deep_model_are_updated():
    # As many as 0.6B has. One loop over all of them would exceed MindSpore's limit on nested calls.
    weights = {f"w{i}": Parameter(Tensor(np.ones(1, np.float32)), name=f"w{i}") for i in range(310)}
    gradients = tuple(Tensor(np.full(1, i, np.float32)) for i in range(310))
    _, norm, _ = _Finish(weights, 1.0)(*adam_scalars(PortableKernels(), SETTINGS, 1e-3, 1), gradients)
    assert float(norm.asnumpy()) == pytest.approx(np.sqrt(np.sum(np.arange(310.0) ** 2)), rel=1e-5)
    assert [float(weight.asnumpy()[0]) for weight in weights.values()] == pytest.approx(
        [1.0] + [1.0 - 1e-3] * 309, abs=1e-6
    )
