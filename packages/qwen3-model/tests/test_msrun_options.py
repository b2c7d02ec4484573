import os
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qwen3_model.command.base import CONTEXT
from qwen3_model.command.parsing import Command
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.cli_options import launch_options
from qwen3_model.ranks.msrun.slurm import first_node, read_slurm


@click.command(cls=Command, context_settings=CONTEXT)
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("out"))
@launch_options
def show(output_dir, make_launch):
    settings = make_launch(output_dir)
    click.echo(repr(settings))


def shown(*arguments):
    result = CliRunner().invoke(show, arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.strip()


def test_one_worker_in_the_output_folder_is_the_default():
    assert shown() == repr(LaunchSettings(worker_num=1, local_worker_num=1, log_dir=Path("out/msrun_log")))


def test_a_job_of_one_node_takes_a_free_port(monkeypatch):
    ports = {re.search(r"master_port=(\d+)", shown("--worker-num", "2"))[1] for _ in range(3)}
    assert ports != {"8118"}
    assert "master_port=8200" in shown("--worker-num", "2", "--master-port", "8200")
    assert "master_port=8118" in shown("--worker-num", "2", "--local-worker-num", "1")


STEP = {
    "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "localhost,rack[07-09]",
    "SLURM_STEP_NUM_NODES": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NODEID": "3",
}  # fmt: skip


def test_ranks_addresses_and_port_come_from_slurm(monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    told = shown("--worker-num", "16")
    assert "local_worker_num=4, master_addr='localhost', master_port=11273, node_rank=3" in told
    assert "node_rank=1" in shown("--worker-num", "16", "--local-worker-num", "8", "--node-rank", "1")
    assert "master_port=9000" in shown("--worker-num", "16", "--master-port", "9000")
    assert CliRunner().invoke(show, ["--worker-num", "6"]).exit_code != 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(ConfigError, match="use srun --ntasks-per-node 1"):
        read_slurm(os.environ)
    monkeypatch.delenv("SLURM_STEP_NODELIST")  # as in the batch script itself
    assert "local_worker_num=16, master_addr='127.0.0.1'" in shown("--worker-num", "16")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("rack[07-09,11]", "rack07"), ("a[3]-ib,b", "a3-ib"), ("x[5,7-8]", "x5")],
)
def test_the_first_node_of_slurms_lists(nodes, first):
    assert first_node(nodes) == first


def test_all_workers_are_local_unless_said():
    assert "worker_num=4, local_worker_num=4" in shown("--worker-num", "4")


def test_every_flag_is_taken_in_both_spellings():
    flags = {
        "worker-num": 16, "local-worker-num": 8, "master-addr": "10.0.0.1", "master-port": 50001,
        "node-rank": 1, "log-dir": "logs", "join": False, "cluster-time-out": 300,
    }  # fmt: skip
    settings = LaunchSettings(
        worker_num=16, local_worker_num=8, master_addr="10.0.0.1", master_port=50001, node_rank=1,
        log_dir=Path("logs"), join=False, cluster_time_out=300,
    )  # fmt: skip
    for spelling in (str, lambda name: name.replace("-", "_")):
        arguments = [text for name, value in flags.items() for text in (f"--{spelling(name)}", str(value))]
        assert shown(*arguments) == repr(settings)
