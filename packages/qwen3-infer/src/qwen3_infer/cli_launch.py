"""What the commands do with msrun's flags, and in a dry run: the model shared out over processes."""

import os
from collections.abc import Callable
from pathlib import Path

import click

from qwen3_infer.cli_options import ARGUMENTS
from qwen3_infer.device import Device
from qwen3_infer.processes.rank import Rank
from qwen3_infer.processes.shared_model import Launch, Sharing, run_other_node
from qwen3_infer.settings.settings import RunSettings
from qwen3_model.device.simulation import Simulation, read_simulation
from qwen3_model.errors import UsageError
from qwen3_model.ranks.msrun.checks import LaunchSettings


def read_worker_num(make_launch: Callable[[Path], LaunchSettings]) -> int:
    """Return over how many processes the model is shared out, of which a dry run plays one."""
    simulation = read_simulation(os.environ)
    return simulation.num_ranks if simulation else make_launch(Path()).worker_num


def say_dry_run(simulation: Simulation) -> None:
    """Tell the user that nothing below means anything."""
    click.echo(
        f"Dry run of rank {simulation.rank} of {simulation.num_ranks}: nothing is computed or written.",
        err=True,
    )


def read_launch(
    context: click.Context, make_launch: Callable[[Path], LaunchSettings], output_dir: Path
) -> Sharing:
    """Return the processes that the command starts, or the rank that it plays; None for this one alone.

    Raises:
        UsageError: They are asked for in the background.
    """
    if simulation := read_simulation(os.environ):
        say_dry_run(simulation)
        return simulation
    settings = make_launch(output_dir)
    if settings.worker_num == 1:
        return None
    name = context.command.name or ""
    if not settings.join:
        raise UsageError(f"--join False: {name} runs in the foreground; leave it out")
    return Launch(settings=settings, arguments=(name, *context.meta[ARGUMENTS]), environment=os.environ)


def runs_for_another(
    context: click.Context, run: RunSettings, device: Device, launch: Sharing, *, quiet: bool
) -> bool:
    """Do this process's part and return True, if the command itself runs in another process.

    That is so in each of the processes that it has started, and on the other nodes of its job.
    """
    rank: Rank | None = context.obj
    if rank is not None:
        from qwen3_infer.processes.follower import follow
        from qwen3_infer.settings.settings import open_run_folder

        follow(open_run_folder(run), device, run.model_parallel, rank)
        return True
    if isinstance(launch, Launch) and launch.settings.node_rank > 0:
        run_other_node(device, launch, quiet=quiet)
        return True
    return False
