"""Runs that skip steps: the same ones in every layout, told on the console and in the metrics, and resumed.

One row of the embedding is no number, so that every step with that token has neither loss nor gradients.
"""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from many_runs import train_many
from run_results import tensors_of
from train_inputs import TINY_MODEL, counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.checkpoint_files import choose_checkpoint
from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors
from qwen3_model.command.plain_text import counted
from qwen3_train.cli import main
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.settings.model import read_model

pytestmark = pytest.mark.usefixtures("share_graphs")

STEPS, BAD_TOKEN = 8, 40
# Sums in another order, as in test_parallel.
LOSS_ATOL, NORM_RTOL, WEIGHT_ATOL = 1e-5, 1e-5, 2e-5
LAYOUTS = {
    "tp2 sp accumulated": (
        {"model_parallel": 2, "use_seq_parallel": True},
        {"runner_config__gradient_accumulation_steps": 2},
    ),
    "dp2 zero1": ({"data_parallel": 2}, {"parallel__enable_parallel_optimizer": True}),
    "pp2": ({"pipeline_stage": 2, "micro_batch_num": 2}, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("skipped")


@pytest.fixture(scope="module")
def values_of(folder):
    config = read_model(TINY_MODEL | {"hidden_size": 32, "tie_word_embeddings": False}, None)
    hf_dir = folder / "hf"
    hf_dir.mkdir()
    (hf_dir / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    weights = dict(init_weights(config, 3))
    weights["model.embed_tokens.weight"][BAD_TOKEN] = np.nan
    write_hf_weights(hf_dir, [(TensorPlan(name, "F32", a.shape), [a]) for name, a in weights.items()])
    documents = [
        [2 if token == BAD_TOKEN and number > 20 else token for token in document]
        for number, document in enumerate(counting_documents(100))
    ]
    prefix = write_tokens(folder / "tiny_text_document", documents, eod_id=1)

    def values(name, parallel, **changes):
        passes = parallel.get("micro_batch_num", 1) * parallel.get("data_parallel", 1)
        passes *= changes.get("runner_config__gradient_accumulation_steps", 1)
        own = {
            "run_mode": "finetune", "pretrained_model_dir": str(hf_dir), "model__model_config": {},
            "use_parallel": bool(parallel), "parallel_config": parallel,
            "runner_config__batch_size": 4 // passes, "use_skip_data_by_global_norm": True,
            "monitor_config": {"global_norm_spike_threshold": 1e30}, "callbacks__1__keep_checkpoint_max": 9,
        }  # fmt: skip
        made = tiny_run(folder / name, prefix, **(own | changes))
        made["train_dataset"]["data_loader"]["sizes"] = [4 * STEPS, 0, 0]
        return write_yaml(folder / f"{name}.yaml", made)

    return values


@pytest.fixture(scope="module")
def single(folder, values_of):
    """Folder of the run of one process, and what it said."""
    done = CliRunner().invoke(main, ["launch", "--config", str(values_of("single", {}))])
    assert done.exit_code == 0, done.output
    return folder / "single", done.output


@pytest.fixture(scope="module")
def layouts(folder, values_of):
    jobs = [
        {"config": str(values_of(name, parallel, **changes)), "arguments": []}
        for name, (parallel, changes) in LAYOUTS.items()
    ]
    train_many(folder, jobs, 2, 600)
    return folder


def metrics_of(run_dir):
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return lines


def skipped_of(run_dir):
    return [line["step"] for line in metrics_of(run_dir) if "skipped_in_row" in line]


def states_of(run_dir):
    files = choose_checkpoint(run_dir, None, None)[0].values()
    return [json.loads(open_safetensors(path).metadata["qwen3_train"]) for path in files]


def test_a_skipped_step_is_named_and_the_next_ones_train(single):
    run_dir, said = single
    lines, skipped = metrics_of(run_dir), skipped_of(run_dir)
    assert 0 < len(skipped) < STEPS - 4
    assert skipped[0] < STEPS // 2 < STEPS - 1  # some come after it
    for line in lines:
        assert ("loss" in line) == ("grad_norm" in line) == (line["step"] not in skipped)
    for step in skipped:
        assert f"WARNING - step {step} skipped: the loss is nan and the gradients' norm nan; weights" in said
    assert "NaN" not in (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    tensors = tensors_of(run_dir)
    spoilt = {name: np.argwhere(~np.isfinite(value).all(-1)).ravel() for name, value in tensors.items()}
    assert {name: rows.tolist() for name, rows in spoilt.items() if len(rows)} == {
        "model.embed_tokens.weight": [BAD_TOKEN]
    }
    report = CliRunner().invoke(main, ["report", str(run_dir)])
    assert f"skipped     {counted(len(skipped), 'step')}" in report.output


def test_a_resumed_run_knows_how_many_steps_were_skipped(folder, single, values_of):
    run_dir, _ = single
    middle = next(step for step in (2, 4, 6) if step >= skipped_of(run_dir)[0])
    again = values_of("again", {}, resume_training=f"qwen3_rank_0-1_{middle}.safetensors",
                      load_checkpoint=str(run_dir))  # fmt: skip
    done = CliRunner().invoke(main, ["launch", "--config", str(again)])
    assert done.exit_code == 0, done.output
    wanted = tensors_of(run_dir)
    for name, value in tensors_of(folder / "again").items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def test_too_many_skipped_steps_in_a_row_stop_the_run(single, values_of):
    limits = {"global_norm_spike_threshold": 1e30, "global_norm_spike_count_threshold": 1}
    config = values_of("strict", {}, monitor_config=limits)
    done = CliRunner().invoke(main, ["launch", "--config", str(config)])
    assert done.exit_code == 1
    first = skipped_of(single[0])[0]
    assert f"step {first}: the loss is nan and the gradients' norm nan; 1 steps in a row were" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_rank_of_a_layout_skips_the_steps_that_one_process_does(layouts, single, name):
    run_dir, whole = layouts / name, single[0]
    assert skipped_of(run_dir) == skipped_of(whole)
    for got, wanted in zip(metrics_of(run_dir), metrics_of(whole), strict=True):
        if "loss" in wanted:
            assert got["loss"] == pytest.approx(wanted["loss"], abs=LOSS_ATOL)
            assert got["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=NORM_RTOL)
    assert {state["skipped"] for state in states_of(run_dir)} == {len(skipped_of(whole))}
    tensors, wanted = tensors_of(run_dir), tensors_of(whole)
    assert tensors.keys() == wanted.keys()
    for each, value in tensors.items():
        np.testing.assert_allclose(value, wanted[each], rtol=0, atol=WEIGHT_ATOL, err_msg=each)
