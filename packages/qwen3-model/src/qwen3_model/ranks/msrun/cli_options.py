"""msrun's flags for a command that starts workers."""

import functools
import os
import socket
from collections.abc import Callable
from pathlib import Path

import click

from qwen3_model.command.narrow import as_int, build
from qwen3_model.command.parsing import Option
from qwen3_model.command.types import SECONDS
from qwen3_model.errors import UsageError
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.slurm import SlurmStep, node_address, read_slurm

OPTIONS: tuple[Callable[..., object], ...] = (
    click.option("--worker-num", default=1, show_default=True, help="Workers of the job, on all nodes."),
    click.option(
        "--local-worker-num",
        type=int,
        help="Workers on this node.  [default: all, or an equal share under Slurm]",
    ),
    click.option("--master-addr", help="Address of node 0.  [default: 127.0.0.1, or Slurm's first node]"),
    click.option(
        "--master-port",
        type=int,
        help="Free port there, from 1024 to 65535.  [default: one that is free, or 8118 for several nodes]",
    ),
    click.option("--node-rank", type=int, help="Number of this node, from 0.  [default: 0, or Slurm's]"),
    click.option(
        "--log-dir", type=click.Path(path_type=Path), help="Folder of logs.  [default: output_dir/msrun_log]"
    ),
    click.option(
        "--join/--no-join", cls=Option, takes_words=True, default=True,
        help="Wait for the job, or let it go on in the background.  [default: join]",
    ),
    click.option(
        "--cluster-timeout", "cluster_time_out", cls=Option, old=("--cluster-time-out",), type=SECONDS,
        default=7200, show_default=True, metavar="SECONDS", help="Seconds to wait for the other nodes.",
    ),
)  # fmt: skip


def launch_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the flags to `command`, which gets them as `make_launch(output_dir)`, a maker of LaunchSettings."""

    @functools.wraps(command)
    def with_settings(*arguments: object, log_dir: Path | None, **others: object) -> object:
        names = (
            "worker_num", "local_worker_num", "master_addr", "master_port", "node_rank", "join",
            "cluster_time_out",
        )  # fmt: skip
        given = {name: value for name in names if (value := others.pop(name)) is not None}

        def make_launch(output_dir: Path) -> LaunchSettings:
            values = _with_defaults(given, read_slurm(os.environ))
            return build(LaunchSettings, {"log_dir": log_dir or output_dir / "msrun_log", **values})

        return command(*arguments, make_launch=make_launch, **others)

    for option in reversed(OPTIONS):
        with_settings = option(with_settings)
    return with_settings


def _with_defaults(given: dict[str, object], step: SlurmStep | None) -> dict[str, object]:
    """Fill in what was not given: from Slurm's step, or for one node."""
    worker_num, values = as_int(given["worker_num"]), dict(given)
    # A command of one worker needs no others, and whoever names nodes by hand does not want Slurm's.
    if step is not None and step.num_nodes > 1 and worker_num > 1 and "node_rank" not in given:
        if "local_worker_num" not in given and worker_num % step.num_nodes:
            raise UsageError(
                f"--worker-num {worker_num} does not divide by the {step.num_nodes} nodes of srun's step"
            )
        values = {
            "local_worker_num": worker_num // step.num_nodes,
            "master_addr": given.get("master_addr") or node_address(step.first_node),
            "master_port": step.port,
            "node_rank": step.node_rank,
        } | given
    values.setdefault("local_worker_num", worker_num)
    if "master_port" not in values and worker_num > 1 and values["local_worker_num"] == worker_num:
        values["master_port"] = free_port()
    return values


def free_port() -> int:
    """Return a TCP port that nobody listened at a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
