from pathlib import Path

import click
from click.testing import CliRunner

from qwen3_model.cli_base import CONTEXT
from qwen3_model.msrun.checks import LaunchSettings
from qwen3_model.msrun.cli_options import launch_options


@click.command(context_settings=CONTEXT)
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
