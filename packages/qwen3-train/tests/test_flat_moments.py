"""ZeRO-1 of weights whose rows do not divide by the replicas: cut by elements, whole in checkpoints."""

import numpy as np
import pytest
from many_runs import train_many
from run_results import tensors_of
from train_inputs import TINY_MODEL, counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_train.layout.stages import piece_shape
from qwen3_train.reports.run_log import read_metrics

STEPS, HALF, LONGEST_S = 8, 4, 600
ATOL, NORM_RTOL = 2e-7, 1e-6
"""The last bit: MindSpore's Adam on a CPU rounds elements behind the last full vector of a tensor apart."""
ODD = TINY_MODEL | {"vocab_size": 65}
"""Two replicas share no rows of the embedding out, but its 65 x 24 elements."""


@pytest.mark.parametrize(
    ("shape", "replicas", "piece"),
    [
        ((64, 24), 2, (32, 24)),
        ((65, 24), 2, (1, 780)),
        ((18_992, 5_120), 32, (1, 3_038_720)),
        ((5, 3), 2, (5, 3)),
        ((9,), 2, (9,)),
        ((9,), 1, (9,)),
    ],
)
def test_a_piece_is_rows_else_elements_else_all(shape, replicas, piece):
    assert piece_shape(shape, replicas) == piece


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same steps of two replicas with whole moments, with shared ones, and gone on from their middle.

    They do not clip: squares of a norm are added up in another order where replicas share gradients out.
    """
    folder = tmp_path_factory.mktemp("flat")
    prefix = write_tokens(folder / "tiny_text_document", counting_documents(100), eod_id=1)
    jobs = []

    def add(name, parallel, *arguments, shares=True, **changes):
        values = tiny_run(
            folder / name, prefix, use_parallel=True, parallel_config=parallel,
            parallel={"enable_parallel_optimizer": shares}, model__model_config=ODD, do_eval=False,
            callbacks__1__save_checkpoint_steps=HALF, runner_wrapper__use_clip_grad=False, **changes,
        )  # fmt: skip
        values["train_dataset"]["data_loader"]["sizes"] = [8 * STEPS, 0, 0]
        config = write_yaml(folder / f"{name}.yaml", values)
        jobs.append({"config": str(config), "arguments": arguments})

    def half(name):
        return (
            "--resume_training",
            f"qwen3_rank_0-1_{HALF}.safetensors",
            "--load_checkpoint",
            str(folder / name),
        )

    dp2 = {"data_parallel": 2}
    add("whole", dp2, shares=False)
    add("flat", dp2)
    add("again", dp2, *half("flat"), callbacks__1__remove_redundancy=True)
    add("moved", {"pipeline_stage": 2, "micro_batch_num": 2}, *half("flat"))
    add("back", dp2, *half("whole"))
    train_many(folder, jobs, 2, LONGEST_S)
    return folder


def curve_of(run_dir, after=0):
    lines = read_metrics(run_dir / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line and line["step"] > after]
    return [line["loss"] for line in steps], [line["grad_norm"] for line in steps]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "after"), [("flat", 0), ("again", HALF), ("back", HALF)])
def test_updates_are_those_of_whole_moments(runs, name, after):
    (losses, norms), (wanted_losses, wanted_norms) = (
        curve_of(runs / each, after) for each in (name, "whole")
    )
    assert len(losses) == STEPS - after
    assert losses == wanted_losses
    np.testing.assert_allclose(norms, wanted_norms, rtol=NORM_RTOL)
    wanted, got = tensors_of(runs / "whole"), tensors_of(runs / name)
    assert got.keys() == wanted.keys()
    assert got["adam_m.model.embed_tokens.weight"].shape == (65, 24)
    for tensor, value in got.items():
        np.testing.assert_allclose(value, wanted[tensor], rtol=0, atol=ATOL, err_msg=tensor)


@pytest.mark.slow
def test_a_run_goes_on_from_them_bit_for_bit(runs):
    assert curve_of(runs / "again", HALF) == curve_of(runs / "flat", HALF)
    wanted = tensors_of(runs / "flat")
    for tensor, value in tensors_of(runs / "again").items():
        np.testing.assert_array_equal(value, wanted[tensor], err_msg=tensor)


@pytest.mark.slow
def test_another_layout_goes_on_from_them(runs):
    for got, wanted in zip(curve_of(runs / "moved", HALF), curve_of(runs / "whole", HALF), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5)
