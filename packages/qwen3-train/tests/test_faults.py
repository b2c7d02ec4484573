"""One run of two ranks through every fault in turn; what comes out is the unbroken run, bit for bit.

The faults are real ones at the place where a checkpoint goes to the disk (`fault_site`).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from run_faults import FAULT_SITE, LONGEST_S, curve_of, fault_of
from train_inputs import counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.checkpoint_files import choose_checkpoint
from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.ranks.msrun.cli_options import free_port

STEPS = 8
GONE_S = 30
"""From a fault to the end of the job; 2 to 6 s where the machine is idle."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def start(folder):
    """Return a function that starts a run of two processes, with a fault."""
    prefix = write_tokens(folder / "tiny_text_document", counting_documents(100), eod_id=1)

    def run(out, *arguments, parallel=None, fault=None, **changes):
        parallel = parallel or {"model_parallel": 2}
        values = tiny_run(folder / out, prefix, use_parallel=True, parallel_config=parallel, **changes)
        values["callbacks"][1]["keep_checkpoint_max"] = 3
        values["train_dataset"]["data_loader"]["sizes"] = [4 * STEPS, 0, 0]
        config = write_yaml(folder / f"{out}.yaml", values)
        port = str(free_port())
        environment = dict(os.environ)
        if fault:
            environment |= {"QWEN3_TEST_FAULT": json.dumps(fault), "PYTHONPATH": str(FAULT_SITE)}
        return subprocess.Popen(
            [sys.executable, "-m", "qwen3_train", "launch", "--config", str(config), "--worker-num", "2",
             "--master-port", port, *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return run


def finish(process):
    out, error = process.communicate(timeout=LONGEST_S)
    return process.returncode, out, error.splitlines()[-1] if error else "", time.time()


def whole_steps(run_dir):
    """Return the step that would be resumed from, and what would be passed over."""
    files, passed_over = choose_checkpoint(run_dir, 2, None)
    return files[0].stem.rpartition("_")[2], passed_over


def weights_of(run_dir):
    found = {}
    for rank, path in choose_checkpoint(run_dir, 2, None)[0].items():
        file = open_safetensors(path)
        found |= {(rank, name): np.array(file.raw(name)) for name in file.tensors}
    return found


def seconds_since(fault, end_s):
    return end_s - float(Path(fault["marker"]).read_text(encoding="utf-8"))


RESUME = ("--resume_training", "True")


@pytest.fixture(scope="module")
def killed_worker(folder, start):
    """A worker is killed while it writes the checkpoint of step 4."""
    fault = fault_of(folder, "kill", 1, 4)
    code, _, error, end_s = finish(start("broken", fault=fault))
    assert code == 1
    assert "rank 1 was killed by SIGKILL" in error
    assert seconds_since(fault, end_s) < GONE_S
    assert whole_steps(folder / "broken")[0] == "2"


@pytest.fixture(scope="module")
def full_disk(folder, start, killed_worker):
    """The disk is full when a checkpoint is written beside the training."""
    fault = fault_of(folder, "full", 0, 6)
    code, _, error, end_s = finish(start("broken", *RESUME, "--callbacks.1.async_save", "True", fault=fault))
    assert code == 1
    assert "rank 0 failed: a checkpoint in " in error
    assert "could not be written or removed (No space left on device); the last whole one is there" in error
    assert seconds_since(fault, end_s) < GONE_S
    worker = (folder / "broken" / "msrun_log" / "worker_0.log").read_text(encoding="utf-8")
    assert "qwen3_rank_0-1_2.safetensors after step 2" in worker
    assert whole_steps(folder / "broken")[0] == "4"


@pytest.fixture(scope="module")
def killed_launcher(folder, start, full_disk):
    """The launcher is killed while a checkpoint is half written: nothing stays behind."""
    fault = fault_of(folder, "wait", 1, 6)
    process = start("broken", *RESUME, fault=fault)
    deadline_s = time.monotonic() + LONGEST_S
    other = folder / "broken" / "checkpoint" / "rank_0" / "qwen3_rank_0-1_6.safetensors"
    while not (Path(fault["marker"]).exists() and other.exists()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline_s = time.monotonic() + GONE_S
    while left := processes_with(fault["marker"]):
        assert time.monotonic() < deadline_s, left
        time.sleep(0.1)
    # Rank 1 has a file of step 6 from the start before, rank 0 from this one.
    step, passed_over = whole_steps(folder / "broken")
    assert step == "4"
    assert passed_over == ["step 1_6 was written by ranks of different starts of the run"]


@pytest.mark.slow
def test_a_run_through_every_fault_ends_as_the_unbroken_one(folder, start, killed_launcher):
    out = folder / "broken"
    # One rank's file is cut short as well: the step before is taken, and the log says so.
    cut = choose_checkpoint(out, 2, None)[0][1]
    cut.write_bytes(cut.read_bytes()[:-5])
    code, log, error, _ = finish(start("broken", *RESUME))
    assert code == 0, error
    assert "passed over: qwen3_rank_1-1_4.safetensors is not whole" in log

    code, _, error, _ = finish(start("unbroken"))
    assert code == 0, error
    assert curve_of(out) == curve_of(folder / "unbroken")
    assert len(curve_of(out)) == STEPS

    # The same fault as at first, in a job that starts again by itself.
    (folder / "again").mkdir()
    fault = fault_of(folder / "again", "kill", 1, 4) | {"once": True}
    again = ("--resume_training", "auto", "--max-restarts", "1")
    code, log, error, _ = finish(start("restarted", *again, fault=fault))
    assert code == 0, error
    assert "rank 1 was killed by SIGKILL" in log + error
    assert curve_of(folder / "restarted") == curve_of(folder / "unbroken")
    wanted, got = weights_of(folder / "unbroken"), weights_of(out)
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=str(name))
    held = sorted(path.name for path in (out / "checkpoint" / "rank_1").iterdir() if path.suffix != ".tmp")
    assert held == ["meta.json", *(f"qwen3_rank_1-1_{step}.safetensors" for step in (4, 6, 8))]


def processes_with(mark):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes())
        except OSError:
            continue
    return found


def log_of(folder, rank):
    return (folder / "spoilt" / "msrun_log" / f"worker_{rank}.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_every_stage_and_is_not_saved(folder, start):
    pipe = {"pipeline_stage": 2, "micro_batch_num": 2}
    wild = {
        "lr_schedule__learning_rate": 1e30,
        "lr_schedule__warmup_steps": 0,
        "runner_config__batch_size": 2,
    }
    code, _, error, _ = finish(start("spoilt", parallel=pipe, callbacks__1__save_checkpoint_steps=1, **wild))
    assert code == 1
    # The first step had a usable gradient; what it made of the weights shows in the second.
    assert re.search("failed: step 2: the loss is .* and the gradients' norm nan, so the weights are", error)
    assert "continue from the last checkpoint" in error
    assert whole_steps(folder / "spoilt")[0] == "1"
    for rank in (0, 1):
        assert "the weights are spoilt" in log_of(folder, rank)
