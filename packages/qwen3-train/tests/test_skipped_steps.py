"""Steps without a usable gradient are left out, as if their batch were not among the data."""

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.errors import Qwen3Error
from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_train.data.batches import Batch
from qwen3_train.settings.adam import AdamSettings
from qwen3_train.settings.model import read_model
from qwen3_train.settings.skip import SkipSettings
from qwen3_train.step.step import StepResult, TrainStep
from qwen3_train.trainer.skipped_steps import SkippedSteps

GOLDEN = open_safetensors(Path(__file__).parent / "golden" / "train.safetensors")
ADAM = AdamSettings(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
NO_NUMBER = SkipSettings(norm_limit=float("inf"), most_in_row=10, stops_at_nan=False)
RATE = 0.02


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def make_step(num_micro_batches, skip):
    model = Qwen3ForCausalLM(read_model(json.loads(GOLDEN.metadata["model"]), None), make_kernels("CPU"))
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(np.array(GOLDEN.raw(f"weights.{name}"))))
    return TrainStep(model, ADAM, max_norm=1.0, num_micro_batches=num_micro_batches, skip=skip)


def batches(number, parts, factor=1.0):
    """The micro-batches of a step; the factor is on the weight of one token of the first."""
    text = np.array(GOLDEN.raw("curve.text")[number])
    weights = np.full(text[:, 1:].shape, 1 / text[:, 1:].size, np.float32)
    weights[0, -1] *= np.float32(factor)
    rows = len(text) // parts
    cuts = [slice(i * rows, (i + 1) * rows) for i in range(parts)]
    return [Batch(text[c, :-1].copy(), text[c, 1:].copy(), weights[c], None, None) for c in cuts]


def state_of(step):
    return {name: held.asnumpy().copy() for name, held in (step.weights | step.moments()).items()}


def assert_equal(got, wanted):
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        np.testing.assert_array_equal(value.view(np.int32), wanted[name].view(np.int32), err_msg=name)


BAD = {2: np.nan, 3: np.inf, 5: -np.inf, 6: 1e30}
"""Weight of one token in the steps of these numbers; 1e30 overflows in the sum of squares."""


@pytest.mark.parametrize("parts", [1, 2])
def test_a_run_with_bad_batches_is_the_run_without_them(parts):
    skipping, plain = make_step(parts, NO_NUMBER), make_step(parts, None)
    taken = 0
    for number in range(8):
        if number in BAD:
            before = state_of(skipping)
            bad = skipping.run(batches(number, parts, BAD[number]), RATE, number + 1)
            assert not bad.is_applied
            assert not np.isfinite(bad.grad_norm)
            assert_equal(state_of(skipping), before)
            continue
        taken += 1
        got = skipping.run(batches(number, parts), RATE, number + 1)
        # The run without them has fewer steps, also in the correction of the moments.
        wanted = plain.run(batches(number, parts), RATE, taken)
        assert (got.loss, got.grad_norm, got.is_applied) == (wanted.loss, wanted.grad_norm, True)
    assert_equal(state_of(skipping), state_of(plain))
    assert skipping.num_skipped == len(BAD)


def test_only_a_norm_below_the_limit_is_applied():
    norm = make_step(1, None).run(batches(0, 1), RATE, 1).grad_norm
    for limit, is_applied in ((norm, False), (np.nextafter(np.float32(norm), np.float32(np.inf)), True)):
        skip = SkipSettings(norm_limit=float(limit), most_in_row=10, stops_at_nan=False)
        step = make_step(1, skip)
        before = state_of(step)
        assert step.run(batches(0, 1), RATE, 1).is_applied == is_applied
        assert (state_of(step)["model.norm.weight"] == before["model.norm.weight"]).all() != is_applied


def result(loss=2.0, norm=1.0, is_applied=True):
    return StepResult(loss, norm, is_applied)


def test_skipped_steps_are_counted_in_a_row_and_stop_the_run_in_the_end():
    skip = SkipSettings(norm_limit=3.0, most_in_row=2, stops_at_nan=False)
    steps = SkippedSteps(skip)
    for number in (1, 3):  # one that is applied in between starts the count anew
        told = steps.notice(number, result(norm=5.0, is_applied=False))
        assert told == (
            f"step {number} skipped: the loss is 2.0 and the gradients' norm 5.0, not below "
            "global_norm_spike_threshold=3; weights and moments are as before "
            "(1 in a row, the run stops at 2)"
        )
        assert steps.notice(number + 1, result()) is None
    steps.notice(5, result(norm=5.0, is_applied=False))
    with pytest.raises(Qwen3Error, match=r"^step 6: the loss is nan and .* 2 steps in a row were skipped"):
        steps.notice(6, result(np.nan, np.nan, is_applied=False))


@pytest.mark.parametrize("skip", [None, SkipSettings(norm_limit=3.0, most_in_row=9, stops_at_nan=True)])
@pytest.mark.parametrize(("loss", "norm"), [(np.nan, 1.0), (1.0, np.inf)])
def test_what_is_no_number_stops_the_run_unless_it_is_to_be_skipped(skip, loss, norm):
    with pytest.raises(Qwen3Error, match=f"^step 4: the loss is {loss} and the gradients' norm {norm}"):
        SkippedSteps(skip).notice(4, result(loss, norm, is_applied=False))
