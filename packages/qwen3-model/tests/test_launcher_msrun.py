"""The launcher with MindSpore's own msrun and two CPU processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3_model.ranks.msrun.cli_options import free_port
from qwen3_model.ranks.msrun.processes import JOB_VARIABLE, is_alive

HERE = Path(__file__).parent
# Importing MindSpore in msrun and in the workers takes most of it.
LONGEST_S = 120
LAUNCH = """
import json, os, sys
from pathlib import Path
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.launcher import Job, launch_workers
folder, changes = Path(sys.argv[2]).parent, json.loads(sys.argv[1])
metrics = Path(sys.argv[2])
status = lambda: metrics.read_text().splitlines()[-1] if metrics.exists() else ""
job = Job(argv=sys.argv[4:], environment=dict(os.environ), status=status)
launch_workers(job, LaunchSettings(worker_num=2, log_dir=Path(sys.argv[3]), **changes))
"""


def launch_command(folder, num_steps, log_dir, **changes):
    metrics = str(folder / "metrics.jsonl")
    worker = [str(HERE / "msrun_worker.py"), metrics, str(num_steps)]
    return [sys.executable, "-c", LAUNCH, json.dumps(changes), metrics, str(log_dir), *worker]


@pytest.fixture
def start(tmp_path):
    started = []

    def launch(num_steps, *before, log_dir=tmp_path / "log", **changes):
        command = [*before, *launch_command(tmp_path, num_steps, log_dir, **changes)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield launch
    for process in started:
        process.kill()  # its guard then ends the job
        process.communicate()


@pytest.fixture
def two_nodes():
    """Two network namespaces joined by a cable, as two machines: the commands that enter them."""
    names = [f"qwen3{os.getpid()}{letter}" for letter in "ab"]
    ends = [f"v{os.getpid()}{letter}" for letter in "ab"]
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}")
    for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
        commands += [f"-n {name} addr add 10.77.0.{number}/24 dev {end}"]
        commands += [f"-n {name} link set {device} up" for device in (end, "lo")]
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True, capture_output=True)
        yield [["ip", "netns", "exec", name] for name in names]
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_processes_of_msrun_add_up_and_end(start, tmp_path):
    process = start(3, local_worker_num=2, master_port=free_port())
    _, err = process.communicate(timeout=LONGEST_S)
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert process.returncode == 0, err
    assert [(step["step"], step["loss"]) for step in steps] == [(1, 3.0), (2, 3.0), (3, 3.0)]
    assert '{"step": 3, "loss": 3.0' in err


@pytest.mark.slow
def test_msruns_workers_and_scheduler_die_with_a_killed_launcher(start, tmp_path):
    process = start(10_000, local_worker_num=2, master_port=free_port())
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


@pytest.mark.slow
def test_two_launches_on_two_nodes_are_one_job(start, tmp_path, two_nodes):
    nodes = [
        start(
            3,
            *enter,
            local_worker_num=1,
            node_rank=rank,
            master_addr="10.77.0.1",
            log_dir=tmp_path / f"log{rank}",
        )
        for rank, enter in enumerate(two_nodes)
    ]
    for node in nodes:
        _, err = node.communicate(timeout=LONGEST_S)
        assert node.returncode == 0, err
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step["loss"] for step in steps] == [3.0, 3.0, 3.0]


def _environ(folder):
    try:
        return (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
