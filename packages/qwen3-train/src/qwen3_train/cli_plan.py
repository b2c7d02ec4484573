"""The `plan` command."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from qwen3_model.command.base import CONTEXT, note, say, say_lines
from qwen3_model.command.options import device_memory_option
from qwen3_model.command.parsing import Command
from qwen3_model.errors import ConfigError


@click.command(cls=Command, context_settings=CONTEXT | {"ignore_unknown_options": True})
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The run's YAML.",
)
@click.option("--devices", type=click.IntRange(min=1), help="Search layouts of this many devices.")
@device_memory_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON with every tensor and layout.")
@click.option(
    "--dry-run", "runs_dry", is_flag=True, help="Also let MindSpore's Ascend backend plan the fullest ranks."
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def plan(
    config_path: Path,
    devices: int | None,
    max_device_memory: int | None,
    as_json: bool,
    runs_dry: bool,
    overrides: tuple[str, ...],
) -> None:
    """Say what a run needs: memory, traffic, steps, layouts.

    Any key of the YAML is overridden with --key.key VALUE. The exit code is 1 when the run's own layout does
    not divide or does not fit.

    --dry-run takes minutes, a compiler and a checkout of this project (tools/ascend_dry_run), and no NPU.

    \b
    Example:
      qwen3-train plan --config configs/qwen3/pretrain_qwen3_32b_4k.yaml --devices 16
      qwen3-train plan --config my.yaml --parallel_config.model_parallel 8
      qwen3-train plan --config my.yaml --dry-run
    """
    from qwen3_model.device.memory import read_memory_limit
    from qwen3_train.launch.run_arguments import read_config, read_overrides
    from qwen3_train.plan.dry_run import dry_run, dry_run_text, find_tool
    from qwen3_train.plan.plan import make_plan, plan_values
    from qwen3_train.plan.settings import read_plan_settings
    from qwen3_train.plan.text import plan_text
    from qwen3_train.settings.unused import unused_keys

    if runs_dry:
        find_tool()
    config = read_config(config_path, overrides)
    notes = [*config.notes, *unused_keys(config)]
    made = make_plan(
        read_plan_settings(config),
        num_devices=devices,
        memory_bytes=read_memory_limit(config, max_device_memory),
    )
    values = plan_values(made) | {"keys": notes}
    if not as_json:
        say_lines(plan_text(made))
    if runs_dry:
        pairs = read_overrides(overrides)
        found = dry_run(made, config_path, pairs, os.environ, note=note)
        values["dry_run"] = [asdict(each) for each in found]
        if not as_json:
            say_lines(dry_run_text(found))
    if as_json:
        say_lines(json.dumps(values, indent=2))
    sys.stdout.flush()
    for sentence in notes if not made.problem else ():
        say(f"Note: {sentence}", err=True)
    if made.problem:
        raise ConfigError(f"{config_path}: {made.problem}")
