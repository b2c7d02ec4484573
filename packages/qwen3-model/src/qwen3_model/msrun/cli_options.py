"""msrun's flags for a command that starts workers."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from qwen3_model.msrun.checks import LaunchSettings

OPTIONS = (
    click.option("--worker-num", default=1, show_default=True, help="Workers of the job, on all nodes."),
    click.option("--local-worker-num", type=int, help="Workers on this node.  [default: all]"),
    click.option("--master-addr", default="127.0.0.1", show_default=True, help="Address of node 0."),
    click.option(
        "--master-port", default=8118, show_default=True, help="Free port there, from 1024 to 65535."
    ),
    click.option("--node-rank", default=0, show_default=True, help="Number of this node, from 0."),
    click.option(
        "--log-dir", type=click.Path(path_type=Path), help="Folder of logs.  [default: output_dir/msrun_log]"
    ),
    click.option(
        "--join", default=True, show_default=True, type=bool, help="False goes on in the background."
    ),
    click.option(
        "--cluster-time-out", default=7200, show_default=True, help="Seconds to wait for the other nodes."
    ),
)


def launch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to `command`, which gets them as `make_launch(output_dir)`, a maker of LaunchSettings."""

    @functools.wraps(command)
    def with_settings(
        *arguments: Any, log_dir: Path | None, local_worker_num: int | None, **others: Any
    ) -> Any:
        names = ("worker_num", "master_addr", "master_port", "node_rank", "join", "cluster_time_out")
        values = {name: others.pop(name) for name in names}

        def make_launch(output_dir: Path) -> LaunchSettings:
            return LaunchSettings(
                log_dir=log_dir or output_dir / "msrun_log",
                local_worker_num=local_worker_num if local_worker_num is not None else values["worker_num"],
                **values,
            )

        return command(*arguments, make_launch=make_launch, **others)

    for option in reversed(OPTIONS):
        with_settings = option(with_settings)
    return with_settings
