"""Launch two fake workers: `python fake_launch.py launch DEED FOLDER [--join False]`."""

import os
import sys
from pathlib import Path

import click

from qwen3_model.command.base import Commands
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.launcher import Job, launch_workers
from qwen3_model.ranks.msrun.stop_signals import EXIT_STOPPED

HERE = Path(__file__).parent


@click.group(cls=Commands)
def main():
    """Stand for a tool."""


@main.command()
@click.argument("deed")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--join", type=bool, default=True)
def launch(deed, folder, join):
    job = Job(
        argv=[str(HERE / "fake_worker.py"), deed, str(folder)],
        environment=dict(os.environ),
        is_stoppable=deed == "stoppable",
        status=lambda: (folder / "status").read_text() if (folder / "status").exists() else "",
    )
    settings = LaunchSettings(
        worker_num=2,
        local_worker_num=2,
        master_port=int(os.environ["TEST_PORT"]),
        log_dir=folder / "log",
        join=join,
    )
    if reason := launch_workers(job, settings, msrun=HERE / "fake_msrun.py"):
        click.echo(reason)
        sys.exit(EXIT_STOPPED)


if __name__ == "__main__":
    sys.exit(main())
