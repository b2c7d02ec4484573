"""The operations in C++: each against NumPy, and a training step with them against the portable one."""

import shutil
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from qwen3_model.config import SIZES
from qwen3_model.device.native_build import compiled_library
from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.loading import init_model
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.loss.loss import TokenLoss
from qwen3_train.native.choice import SOURCE, training_kernels
from qwen3_train.native.kernels import NativeTrainingKernels
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.settings.skip import SkipSettings
from qwen3_train.step.step import TrainStep

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
BETAS = (0.9, 0.95)
RTOL_F32 = 1e-6  # a product and a sum rounded once or twice
CONFIG = replace(
    SIZES["0.6B"], vocab_size=60, hidden_size=24, intermediate_size=32, num_layers=1, num_heads=4,
    num_kv_heads=2, head_dim=8, initializer_range=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compiled_library([SOURCE], tmp_path_factory.mktemp("cache") / "made")


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


class Update(nn.Cell):
    def __init__(self, kernels, weight, m, v, *, is_decayed, is_scaled):
        super().__init__()
        self.kernels, self.is_decayed, self.is_scaled = kernels, is_decayed, is_scaled
        self.weight, self.m, self.v = (
            Parameter(Tensor(value), name=name) for value, name in ((weight, "w"), (m, "m"), (v, "v"))
        )

    @ms.jit
    def construct(self, gradient, rate, eps, decay, step, scale):
        return self.kernels.adamw(
            self.weight, self.m, self.v, gradient, rate, eps, decay if self.is_decayed else None, step, BETAS,
            scale if self.is_scaled else None,
        )  # fmt: skip


@needs_compiler
@pytest.mark.parametrize("shape", [(7,), (300, 401)])  # in one part, and in several
@pytest.mark.parametrize(("is_decayed", "is_scaled"), [(True, True), (False, True), (True, False)])
def test_adamw_is_the_formula_in_float64(library, shape, is_decayed, is_scaled):
    rng = np.random.default_rng(0)
    weight, m, gradient = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    v = rng.random(shape).astype(np.float32)
    kernels = NativeTrainingKernels(library)
    update = Update(kernels, weight, m, v, is_decayed=is_decayed, is_scaled=is_scaled)
    lr, number, eps, decay, scale = 1e-2, 3, 1e-8, 0.1, 0.25
    scalars = kernels.adam_scalars(lr, number, eps, decay, BETAS)
    update(Tensor(gradient), *scalars, Tensor(np.float32(scale)))
    g = gradient.astype(np.float64) * (scale if is_scaled else 1.0)
    own_m, own_v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g**2
    turned = own_m / (1 - BETAS[0] ** number) / (np.sqrt(own_v / (1 - BETAS[1] ** number)) + eps)
    wanted = weight - lr * (turned + (decay if is_decayed else 0.0) * weight)
    for found, value in ((update.weight, wanted), (update.m, own_m), (update.v, own_v)):
        np.testing.assert_allclose(found.asnumpy(), value, rtol=RTOL_F32 * 10, atol=RTOL_F32)


@pytest.mark.parametrize("kind", ["portable", pytest.param("native", marks=needs_compiler)])
def test_rows_are_added_to_the_rows_of_their_ids(library, kind):
    kernels = PortableKernels() if kind == "portable" else NativeTrainingKernels(library)

    @ms.jit
    def add(table, ids, rows):
        return kernels.add_rows(table * 1.0, ids, rows)

    rng = np.random.default_rng(1)
    table, rows = (
        rng.standard_normal((9, 5)).astype(np.float32),
        rng.standard_normal((4, 5)).astype(np.float32),
    )
    ids = np.array([3, 0, 3, 8], np.int32)
    wanted = table.copy()
    np.add.at(wanted, ids, rows)
    found = add(Tensor(table), Tensor(ids), Tensor(rows)).asnumpy()
    np.testing.assert_allclose(found, wanted, rtol=RTOL_F32)


def train(kernels, *, passes=1):
    model = Qwen3ForCausalLM(CONFIG, kernels)
    init_model(model, 3)
    step = TrainStep(
        model, AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1), max_norm=0.5,
        num_micro_batches=passes,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    told = []
    for number in range(1, 5):
        batches = []
        for _ in range(passes):
            text = rng.integers(0, 60, (2, 17)).astype(np.int32)
            weights = np.full((2, 16), 1 / 32 / passes, np.float32)
            batches.append(Batch(text[:, :-1].copy(), text[:, 1:].copy(), weights, None, None))
        result = step.run(batches, 1e-2, number)
        told.append((result.loss, result.grad_norm))
    return np.array(told), {
        name: weight.asnumpy() for name, weight in (step.weights | step.moments()).items()
    }


@needs_compiler
@pytest.mark.parametrize("passes", [1, 2])
def test_steps_are_those_of_the_portable_kernels_and_of_two_gradients(library, passes, monkeypatch):
    told, held = train(NativeTrainingKernels(library), passes=passes)
    with monkeypatch.context() as patch:
        patch.setattr("qwen3_train.loss.loss._trains_table", lambda model: False)
        wanted, wanted_held = train(PortableKernels(), passes=passes)
    np.testing.assert_allclose(told, wanted, rtol=1e-5)
    for name, value in wanted_held.items():
        np.testing.assert_allclose(held[name], value, atol=1e-5, err_msg=name)


@needs_compiler
def test_a_step_that_is_skipped_changes_nothing(library):
    model = Qwen3ForCausalLM(CONFIG, NativeTrainingKernels(library))
    init_model(model, 3)
    skip = SkipSettings(norm_limit=1e-3, most_in_row=10, stops_at_nan=False)
    adam = AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    step = TrainStep(model, adam, max_norm=0.5, num_micro_batches=1, skip=skip)
    before = {name: weight.asnumpy().copy() for name, weight in (step.weights | step.moments()).items()}
    ids = np.arange(32, dtype=np.int32).reshape(2, 16)
    result = step.run([Batch(ids, ids + 1, np.full((2, 16), 1 / 32, np.float32), None, None)], 1e-2, 1)
    assert not result.is_applied
    for name, weight in (step.weights | step.moments()).items():
        np.testing.assert_array_equal(weight.asnumpy(), before[name], err_msg=name)


def test_only_a_tied_table_that_trains_shares_its_gradient():
    model = Qwen3ForCausalLM(CONFIG, PortableKernels())
    assert TokenLoss(model).lookup is not None
    model.model.embed_tokens.weight.requires_grad = False
    assert TokenLoss(model).lookup is None


def test_without_a_compiler_the_portable_kernels_are_taken_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("qwen3_model.device.native_build.shutil.which", lambda name: None)
    said = []
    kernels = training_kernels("CPU", say=said.append, cache_dir=tmp_path / "own")
    assert type(kernels) is PortableKernels
    assert said == ["portable operations update the weights: there is no C++ compiler; install g++"]
