"""What `chat`, `serve`, `score` and `eval` do with msrun's flags: the model shared out over processes."""

import os
from collections.abc import Callable
from pathlib import Path

import click

from qwen3_infer.cli_options import ARGUMENTS, Rank
from qwen3_infer.device import Device
from qwen3_infer.settings import RunSettings
from qwen3_infer.shared_model import Launch, run_other_node
from qwen3_model.errors import UsageError
from qwen3_model.msrun.checks import LaunchSettings


def read_launch(
    context: click.Context, make_launch: Callable[[Path], LaunchSettings], output_dir: Path
) -> Launch | None:
    """Return the processes that the command starts; None for this one alone.

    Raises:
        UsageError: They are asked for in the background.
    """
    settings = make_launch(output_dir)
    if settings.worker_num == 1:
        return None
    name = context.command.name or ""
    if not settings.join:
        raise UsageError(f"--join False: {name} runs in the foreground; leave it out")
    return Launch(settings=settings, arguments=(name, *context.meta[ARGUMENTS]), environment=os.environ)


def runs_for_another(
    context: click.Context, run: RunSettings, device: Device, launch: Launch | None, *, quiet: bool
) -> bool:
    """Do this process's part and return True, if the command itself runs in another process.

    That is so in each of the processes that it has started, and on the other nodes of its job.
    """
    rank: Rank | None = context.obj
    if rank is not None:
        from qwen3_infer.engine.follower import follow
        from qwen3_infer.settings import open_run_folder

        follow(open_run_folder(run), device, run.model_parallel, rank)
        return True
    if launch is not None and launch.settings.node_rank > 0:
        run_other_node(device, launch, quiet=quiet)
        return True
    return False
