"""The `doctor` command."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from qwen3_model.command.base import CONTEXT, say
from qwen3_model.command.options import device_option
from qwen3_model.command.parsing import Command, Option
from qwen3_model.command.plain_text import without_controls
from qwen3_model.command.types import SECONDS
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.cli_options import launch_options

COLOURS = {"pass": "green", "fail": "red", "skipped": "yellow"}


@click.command(cls=Command, context_settings=CONTEXT)
@device_option("device", default="auto")
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("output"),
    show_default=True,
    help="Where runs shall be written; the workers' logs go into its folder msrun_log.",
)
@click.option(
    "--timeout", "time_out_s", cls=Option, old=("--time-out",), type=SECONDS, default=600, show_default=True,
    metavar="SECONDS", help="Seconds for what the device does.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@launch_options
def doctor(
    device: str,
    output_dir: Path,
    time_out_s: float,
    make_launch: Callable[[Path], LaunchSettings],
    *,
    as_json: bool,
) -> None:
    """Check a machine before the first run.

    Each line passes, fails with what to do, or is skipped. Looks at versions, devices, CANN, HCCL,
    memory, disk and ports, then multiplies matrices on the device, adds up a vector over all ranks with
    its bandwidth, and takes two training steps whose losses are known. The exit code is 1 when a line
    fails.

    \b
    Example:
      qwen3-train doctor
      qwen3-train doctor --worker-num 8
      qwen3-train doctor --worker-num 16 --local-worker-num 8 --master-addr 10.0.0.1 --node-rank 0
    """
    from qwen3_model.device.simulation import default_device, read_simulation
    from qwen3_train.doctor.doctor import examine

    device = default_device(read_simulation(os.environ)) if device == "auto" else device
    failures = 0
    for finding in examine(device, make_launch(output_dir), output_dir, os.environ, time_out_s=time_out_s):
        failures += finding.state == "fail"
        if as_json:
            say(json.dumps(asdict(finding)))
            continue
        state = click.style(f"{finding.state:8}", COLOURS[finding.state])
        click.echo(state + without_controls(f"{finding.what:11} {finding.text}"))
        if finding.state == "fail":
            say(f"{'':19} -> {finding.remedy}")
    if failures:
        raise click.exceptions.Exit(1)
