"""Every layout trains as one process does: loss, gradient norm and weights of twenty steps, through msrun.

A job costs twenty seconds and more (MindSpore's import and compilation in each process), so each layout runs
once. Tied models start from random weights, untied ones from a Hugging Face folder.
"""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from train_inputs import TINY_MODEL, counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoint_files import choose_checkpoint
from qwen3_model.fresh_weights import init_weights
from qwen3_model.hf_folder import write_hf_weights
from qwen3_model.rank_tensors import open_rank_tensors
from qwen3_model.safetensors_file import TensorPlan
from qwen3_train.model_settings import read_model
from qwen3_train.run_log import read_metrics

# Sums in another order, at a learning rate of 0.02; largest seen: 2e-6, 3e-6 and 3e-6.
LOSS_ATOL, NORM_RTOL, WEIGHT_ATOL = 1e-5, 1e-5, 2e-5
MOMENT_ATOL = 1e-5
STEPS, HALF = 20, 10
LONGEST_S = 300

LAYOUTS = {
    "tp2": {"model_parallel": 2},
    "tp2 sp": {"model_parallel": 2, "use_seq_parallel": True},
    "dp2": {"data_parallel": 2},
    "dp2 zero1": {"data_parallel": 2},
    "pp2": {"pipeline_stage": 2, "micro_batch_num": 4},
    "tp2 pp2": {"model_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 4},
    "dp2 tp2": {"data_parallel": 2, "model_parallel": 2, "use_seq_parallel": True},
    "dp2 pp2": {"data_parallel": 2, "pipeline_stage": 2, "micro_batch_num": 2},
}
# Both kinds of head under each kind of split.
IS_TIED = {
    "tp2": True, "tp2 sp": False, "dp2": False, "dp2 zero1": True, "pp2": True, "tp2 pp2": True,
    "dp2 tp2": True, "dp2 pp2": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def hf_dir(folder):
    config = read_model(TINY_MODEL | {"hidden_size": 32, "tie_word_embeddings": False}, None)
    path = folder / "hf"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    weights = dict(init_weights(config, 3))
    write_hf_weights(path, [(TensorPlan(name, "F32", a.shape), [a]) for name, a in weights.items()])
    return path


@pytest.fixture(scope="module")
def train(folder, hf_dir):
    """Return a function that trains under a layout and returns the run's folder; each run happens once."""
    prefix = write_tokens(folder / "tiny_text_document", counting_documents(260), eod_id=1)
    finished = {}

    def run(name, *, is_tied, parallel=None, zero=False, changes=None):
        key = (name, is_tied)
        if key not in finished:
            out = folder / f"{name} {is_tied}".replace(" ", "_")
            values = tiny_run(out, prefix, **_run(is_tied, parallel or {}, zero, hf_dir))
            values["train_dataset"]["data_loader"]["sizes"] = [8 * STEPS, 20, 0]
            values |= changes or {}
            _launch(values, folder / f"{out.name}.yaml", parallel or {})
            finished[key] = out
        return finished[key]

    return run


def _run(is_tied, parallel, zero, hf_dir):
    passes = parallel.get("micro_batch_num", 1) * parallel.get("data_parallel", 1)
    changes = {
        "use_parallel": bool(parallel), "parallel_config": parallel, "do_eval": True,
        "parallel": {"enable_parallel_optimizer": zero}, "runner_config__batch_size": 8 // passes,
        "callbacks__1__save_checkpoint_steps": HALF,
        "model__model_config": TINY_MODEL | {"hidden_size": 32, "tie_word_embeddings": is_tied},
    }  # fmt: skip
    if not is_tied:
        changes |= {"run_mode": "finetune", "pretrained_model_dir": str(hf_dir), "model__model_config": {}}
    return changes


def _launch(values, config, parallel):
    worker_num = 1
    for axis in ("data_parallel", "model_parallel", "pipeline_stage"):
        worker_num *= parallel.get(axis, 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "from qwen3_train.cli import main; main()"
    command = ["launch", "--config", str(write_yaml(config, values))]
    workers = ["--worker-num", str(worker_num), "--master-port", str(port)]
    done = subprocess.run(
        [sys.executable, "-c", program, *command, *workers],
        capture_output=True, text=True, check=False, timeout=LONGEST_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def steps_of(run_dir: Path, after: int = 0):
    return [
        line for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line and line["step"] > after
    ]


def tensors_of(run_dir: Path, name: str | None = None):
    held = open_rank_tensors(choose_checkpoint(run_dir, None, name)[0])
    names = [name for name in held.names() if "model" in name or "lm_head" in name]
    return {name: held.read(name, tuple(slice(0, size) for size in held.shape(name)))[1] for name in names}


def assert_same_run(run_dir: Path, single: Path, after: int = 0):
    got, wanted = steps_of(run_dir, after), steps_of(single, after)
    assert [line["step"] for line in got] == list(range(after + 1, STEPS + 1))
    losses = [[line["loss"] for line in lines] for lines in (got, wanted)]
    norms = [[line["grad_norm"] for line in lines] for lines in (got, wanted)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=LOSS_ATOL)
    np.testing.assert_allclose(norms[0], norms[1], rtol=NORM_RTOL, atol=0)
    evaluations = [
        {
            line["step"]: line["eval_loss"]
            for line in read_metrics(each / "metrics.jsonl")
            if "eval_loss" in line
        }
        for each in (run_dir, single)
    ]
    assert evaluations[0].keys() <= evaluations[1].keys()
    for step, value in evaluations[0].items():
        assert value == pytest.approx(evaluations[1][step], abs=LOSS_ATOL)
    tensors, whole = tensors_of(run_dir), tensors_of(single)
    assert tensors.keys() == whole.keys()
    for name, value in tensors.items():
        atol = MOMENT_ATOL if name.startswith("adam") else WEIGHT_ATOL
        np.testing.assert_allclose(value, whole[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_trains_as_one_process_does(train, layout):
    is_tied = IS_TIED[layout]
    single = train("single", is_tied=is_tied)
    assert steps_of(single)[-1]["loss"] < steps_of(single)[0]["loss"] - 1
    zero = "zero1" in layout or layout == "dp2 tp2"
    run_dir = train(layout, is_tied=is_tied, parallel=LAYOUTS[layout], zero=zero)
    assert_same_run(run_dir, single)
    num_ranks = len(choose_checkpoint(run_dir, None, None)[0])
    for rank in range(num_ranks):
        assert "loss: " in (run_dir / "msrun_log" / f"worker_{rank}.log").read_text(encoding="utf-8")
    if zero:
        held = open_rank_tensors({0: choose_checkpoint(run_dir, None, None)[0][0]})
        name = "adam_m.model.layers.0.mlp.down_proj.weight"
        assert held.shape(name)[0] == 16  # this replica's half of 32 rows


def resumed_from_half(run_dir: Path):
    """Return the keys that go on from the middle of a run, in another folder."""
    return {"resume_training": f"qwen3_rank_0-1_{HALF}.safetensors", "load_checkpoint": str(run_dir)}


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_in_its_layout(train):
    first = train("tp2", is_tied=True, parallel=LAYOUTS["tp2"])
    again = train("again", is_tied=True, parallel=LAYOUTS["tp2"], changes=resumed_from_half(first))
    curves = [
        [(line["step"], line["loss"], line["grad_norm"]) for line in steps_of(run_dir, HALF)]
        for run_dir in (again, first)
    ]
    assert len(curves[0]) == STEPS - HALF
    assert curves[0] == curves[1]
    wanted = tensors_of(first)
    for name, value in tensors_of(again).items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


@pytest.mark.slow
def test_a_run_resumes_under_another_layout(train):
    first = train("dp2 zero1", is_tied=True, parallel=LAYOUTS["dp2 zero1"], zero=True)
    other = train("other", is_tied=True, parallel=LAYOUTS["pp2"], changes=resumed_from_half(first))
    assert_same_run(other, train("single", is_tied=True), HALF)
