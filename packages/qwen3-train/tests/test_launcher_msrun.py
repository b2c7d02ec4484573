"""The launcher with MindSpore's own msrun and two CPU processes."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3_train.job_processes import JOB_VARIABLE, is_alive

HERE = Path(__file__).parent
# Importing MindSpore in msrun and in the workers takes most of it.
LONGEST_S = 120
LAUNCH = """
import os, sys
from pathlib import Path
from qwen3_train.launch_checks import LaunchSettings
from qwen3_train.launcher import Job, launch_workers
argv, folder, port = sys.argv[1:-2], Path(sys.argv[-2]), int(sys.argv[-1])
job = Job(argv=argv, environment=dict(os.environ), metrics_path=folder / "metrics.jsonl", total_steps=3)
settings = LaunchSettings(worker_num=2, local_worker_num=2, master_port=port, log_dir=folder / "log")
launch_workers(job, settings)
"""


@pytest.fixture
def start(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []

    def launch(num_steps):
        argv = [str(HERE / "msrun_worker.py"), str(tmp_path / "metrics.jsonl"), str(num_steps)]
        command = [sys.executable, "-c", LAUNCH, *argv, str(tmp_path), str(port)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield launch
    for process in started:
        process.kill()  # its guard then ends the job
        process.communicate()


@pytest.mark.slow
def test_two_processes_of_msrun_add_up_and_end(start, tmp_path):
    process = start(3)
    _, err = process.communicate(timeout=LONGEST_S)
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert process.returncode == 0, err
    assert [(step["step"], step["loss"]) for step in steps] == [(1, 3.0), (2, 3.0), (3, 3.0)]
    assert "step 3/3, loss 3.0000" in err


@pytest.mark.slow
def test_msruns_workers_and_scheduler_die_with_a_killed_launcher(start, tmp_path):
    process = start(10_000)
    metrics, deadline_s = tmp_path / "metrics.jsonl", time.monotonic() + LONGEST_S
    while not (metrics.exists() and metrics.read_text().count("\n")):
        assert time.monotonic() < deadline_s, "no step was taken"
        time.sleep(0.1)
    worker, msrun = json.loads(metrics.read_text().splitlines()[0])["pids"]
    variables = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    mark = next(variable for variable in variables if variable.startswith(JOB_VARIABLE.encode()))
    pids = [int(folder.name) for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and mark in _environ(folder)]  # fmt: skip
    assert len(pids) >= 4  # msrun, scheduler, two workers
    assert {worker, msrun} <= set(pids)
    os.kill(process.pid, 9)
    deadline_s = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline_s, "left behind"
        time.sleep(0.1)


def _environ(folder):
    try:
        return (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
