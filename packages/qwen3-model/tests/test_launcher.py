import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3_model.ranks.msrun.cli_options import free_port
from qwen3_model.ranks.msrun.processes import is_alive

HERE = Path(__file__).parent
LONGEST_S = 60
# Longest time until all processes are gone after their launcher is: SIGTERM's patience and some.
GONE_S = 8.0


@pytest.fixture
def start(tmp_path):
    """Start a launch with a deed; the process, and every process of its job after the test, are ended."""
    started = []
    port = free_port()

    def launch(deed, *options, **streams):
        environment = os.environ | {"TEST_PORT": str(port)}
        environment.pop("OMP_NUM_THREADS", None)
        command = [sys.executable, str(HERE / "fake_launch.py"), "launch", deed, str(tmp_path), *options]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | streams
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, **streams))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()
    for pid in job_processes(tmp_path, wait=False):
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def job_processes(folder, *, wait=True):
    """Worker, msrun and helper of both ranks."""
    deadline_s = time.monotonic() + LONGEST_S
    while wait and len(list(folder.glob("pids_?"))) < 2:
        assert time.monotonic() < deadline_s, "workers did not start"
        time.sleep(0.05)
    return sorted({int(pid) for path in folder.glob("pids_?") for pid in path.read_text().split()})


def assert_gone(pids):
    deadline_s = time.monotonic() + GONE_S
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline_s, f"left behind: {alive}"
        time.sleep(0.05)


def test_a_job_that_finishes_ends_well_and_shows_its_last_status(start, tmp_path):
    process = start("finish")
    out, err = process.communicate(timeout=LONGEST_S)
    assert (process.returncode, out) == (0, "")
    assert "three of ten" in err
    assert_gone(job_processes(tmp_path))


def test_workers_use_this_interpreter_and_share_the_threads(start, tmp_path):
    start("finish").communicate(timeout=LONGEST_S)
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank in (0, 1):
        log = (tmp_path / "log" / f"worker_{rank}.log").read_text()
        assert log.startswith(f"prefix {sys.prefix} threads {threads}\n")


@pytest.mark.parametrize(
    ("deed", "sentence"),
    [
        ("raise", "rank 1 failed: ValueError: the second rank does not like this; see {log}"),
        ("refuse", "rank 1 failed: seq_length=0 must be at least 1; see {log}"),
        ("exit", "rank 1 failed: no space left on the device; see {log}"),
        ("kill", "rank 1 was killed by SIGKILL, perhaps by the system for want of memory; see {log}"),
    ],
)
def test_the_first_failure_ends_the_job_with_its_reason_and_log(start, tmp_path, deed, sentence):
    process = start(deed)
    pids = job_processes(tmp_path)
    _, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "Error: " + sentence.format(log=tmp_path / "log" / "worker_1.log")
    assert_gone(pids)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143), (signal.SIGKILL, -9), (signal.SIGHUP, -1)]
)
def test_no_process_outlives_the_launcher(start, tmp_path, number, code):
    process = start("sleep")
    pids = job_processes(tmp_path)
    assert len(pids) == 5  # two workers, two helpers in sessions of their own, one msrun
    assert all(is_alive(pid) for pid in pids)
    process.send_signal(number)
    process.communicate(timeout=LONGEST_S)
    assert process.returncode == code
    assert_gone(pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("target", ["launcher", "all"])
def test_a_job_that_is_asked_to_end_saves_first_and_has_a_code_of_its_own(start, tmp_path, number, target):
    process = start("stoppable")
    pids = job_processes(tmp_path)
    if target == "all":  # as a cluster does: workers and msrun, too
        for pid in {int(pid) for path in tmp_path.glob("pids_?") for pid in path.read_text().split()[:2]}:
            os.kill(pid, number)
    process.send_signal(number)
    out, err = process.communicate(timeout=LONGEST_S)
    assert (process.returncode, out) == (75, f"{number.name}\n"), err
    assert_gone(pids)


def test_a_job_that_does_not_end_when_asked_ends_at_the_second_sigterm(start, tmp_path):
    process = start("stoppable")
    pids = job_processes(tmp_path)
    os.kill(int((tmp_path / "pids_1").read_text().split()[0]), signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LONGEST_S)
    assert process.returncode == 143
    assert_gone(pids)


def test_a_rank_that_stands_still_is_named_and_not_the_one_that_gave_up_waiting(start, tmp_path):
    process = start("sleep")
    pids = job_processes(tmp_path)
    zero, one = (int((tmp_path / f"pids_{rank}").read_text().split()[0]) for rank in (0, 1))
    os.kill(one, signal.SIGSTOP)
    time.sleep(1)  # the others wait longer than that
    os.kill(zero, signal.SIGTERM)
    _, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 1
    assert f"Error: rank 1 stands still: its process {one} was suspended, by SIGSTOP" in err
    assert_gone(pids)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_named_and_the_rest_ends(start, tmp_path, rank):
    process = start("sleep")
    pids = job_processes(tmp_path)
    os.kill(int((tmp_path / f"pids_{rank}").read_text().split()[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 1
    assert f"Error: rank {rank} was killed by SIGKILL" in err
    assert_gone(pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_that_do_not_hear_are_killed(start, tmp_path, number):
    process = start("stubborn")
    pids = job_processes(tmp_path)
    process.send_signal(number)
    assert_gone(pids)


def test_a_killed_msrun_is_noticed_and_the_rest_ends(start, tmp_path):
    process = start("sleep")
    pids = job_processes(tmp_path)
    os.kill(int((tmp_path / "pids_0").read_text().split()[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 1
    assert "Error: msrun ended by signal 9 before all workers had finished" in err
    assert_gone(pids)


def test_without_join_the_job_goes_on_in_the_background_until_it_is_killed(start, tmp_path):
    process = start("sleep", "--join", "False", stderr=subprocess.DEVNULL)
    out, _ = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0
    assert f"follow it with tail -f {tmp_path}/log/worker_0.log, end it with kill " in out
    pids = job_processes(tmp_path)
    assert all(is_alive(pid) for pid in pids)
    os.kill(int(out.split()[-1]), signal.SIGTERM)
    assert_gone(pids)


def test_a_terminal_sees_one_line_drawn_over_itself(start, tmp_path):
    leader, follower = pty.openpty()
    process = start("finish", stderr=follower)
    os.close(follower)
    process.wait(timeout=LONGEST_S)
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert "\r\x1b[Kstarting: 0 of 2 workers up" in shown
    assert "\r\x1b[Kthree of ten" in shown
    assert shown.count("\n") == 1


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, str(HERE / "fake_launch.py"), "launch", "finish", str(tmp_path)]
        done = subprocess.run(
            command,
            env=os.environ | {"TEST_PORT": port},
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
    assert done.returncode == 1
    assert (
        done.stderr
        == f"Error: --master-port {port} of 127.0.0.1 is in use; choose another or end what holds it\n"
    )
    assert not list(tmp_path.glob("pids_*"))
