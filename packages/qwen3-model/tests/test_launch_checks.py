import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3_model.errors import ConfigError
from qwen3_model.ranks.msrun import checks
from qwen3_model.ranks.msrun.checks import (
    LaunchSettings,
    check_launch,
    count_ascend_devices,
    find_msrun,
    interpreter_name,
)
from qwen3_model.ranks.msrun.cli_options import free_port
from qwen3_model.ranks.msrun.launcher import msrun_command, worker_environment


@pytest.fixture
def settings(tmp_path):
    return LaunchSettings(worker_num=8, local_worker_num=4, master_port=free_port(), log_dir=tmp_path / "log")


def test_settings_that_can_work_pass(settings):
    check_launch(settings, num_devices=4)
    check_launch(replace(settings, node_rank=1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"worker_num": 0}, "must be at least 1"),
        ({"local_worker_num": 3}, "is no multiple of --local-worker-num 3"),
        ({"local_worker_num": 16}, "is no multiple of --local-worker-num 16"),
        ({"node_rank": 2}, "--node-rank 2 is none of the 2 nodes; count from 0"),
        ({"node_rank": -1}, "--node-rank -1 is none"),
        ({"master_port": 80}, "--master-port 80 is not from 1024 to 65535"),
        ({"master_addr": "203.0.113.7"}, "--master-addr 203.0.113.7 is not this machine's"),
        ({"master_addr": "rack..7"}, "--master-addr rack..7 is no name of a host"),
        ({"log_dir": Path(__file__)}, "is not a folder"),
        ({"log_dir": Path("/proc/log")}, "cannot be made"),
    ],
)
def test_what_cannot_start_is_one_sentence(settings, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_launch(replace(settings, **changes))


def test_too_few_devices_are_refused(settings):
    with pytest.raises(ConfigError, match="--local-worker-num 4 exceeds the 2 devices of this machine"):
        check_launch(settings, num_devices=2)


def test_all_problems_are_named_at_once(settings):
    with pytest.raises(ConfigError) as raised:
        check_launch(replace(settings, local_worker_num=3, master_port=80), num_devices=2)
    assert str(raised.value).count(";") >= 3


def test_the_second_node_may_name_an_address_that_is_not_its_own(settings):
    check_launch(replace(settings, node_rank=1, master_addr="203.0.113.7"))


def test_visible_devices_limit_the_number():
    assert count_ascend_devices("0,1,5") == 3
    assert count_ascend_devices(None) >= 0


def test_ranks_of_a_node_follow_those_of_the_nodes_before(settings):
    assert list(replace(settings, node_rank=1).ranks) == [4, 5, 6, 7]


def test_msrun_gets_every_flag_and_the_running_interpreter(settings):
    command = msrun_command(["train.py", "--x", "1"], replace(settings, node_rank=1), Path("/bin/msrun"))
    assert command[:2] == [sys.executable, "/bin/msrun"]
    assert "--worker_num=8" in command
    assert "--local_worker_num=4" in command
    assert "--node_rank=1" in command
    assert "--cluster_time_out=7200" in command
    assert command[-5:] == ["-m", "qwen3_model.ranks.msrun.cli_worker", "train.py", "--x", "1"]
    assert command[-6] == interpreter_name()


def test_an_environment_without_msrun_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(checks.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="install MindSpore into the environment of"):
        find_msrun()


def test_an_interpreter_that_msrun_cannot_name_is_refused(monkeypatch, tmp_path):
    (tmp_path / "python3.11").touch()
    (tmp_path / "python").touch()
    monkeypatch.setattr(checks.sys, "executable", str(tmp_path / "python3.11"))
    with pytest.raises(ConfigError, match="has no python or python3 that is python3"):
        interpreter_name()


def test_the_users_own_number_of_threads_wins(settings):
    made = worker_environment({"OMP_NUM_THREADS": "7", "PATH": "/bin"}, settings, "job")
    assert made["QWEN3_THREADS"] == "7"
    assert made["PATH"].split(":")[0] == str(Path(sys.executable).parent)
