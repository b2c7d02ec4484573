"""The `inspect-data` command."""

import sys
from pathlib import Path

import click

from qwen3_model.command.base import CONTEXT
from qwen3_model.command.options import limit_option, start_option
from qwen3_model.command.parsing import Command


@click.command("inspect-data", cls=Command, context_settings=CONTEXT | {"ignore_unknown_options": True})
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The run's YAML.",
)
@limit_option("Samples to show.", "samples", old=("--samples",), default=2)
@start_option
@click.option("--table", is_flag=True, help="One line per position: id, token, position, label.")
@click.option("--color/--no-color", default=None, help="Green for learned, or [[ ]]; default: by terminal.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def inspect_data(
    config_path: Path,
    samples: int,
    start: int,
    overrides: tuple[str, ...],
    *,
    table: bool,
    color: bool | None,
) -> None:
    """Print training samples as the model sees them.

    That is tokens, loss, positions and borders of documents. Any key of the YAML is overridden with
    --key.key VALUE.

    \b
    Example:
      qwen3-train inspect-data --config configs/qwen3/finetune_qwen3_0.6b_4k.yaml --limit 1 \\
        --train_dataset.data_loader.data_files alpaca.jsonl --pretrained_model_dir Qwen3-0.6B
    """
    from qwen3_train.data.inspect import inspect_data as lines_of
    from qwen3_train.launch.run_arguments import read_overrides, refuse_other_files

    pairs = read_overrides(overrides)
    refuse_other_files(config_path, pairs)
    is_colored = sys.stdout.isatty() if color is None else color
    for line in lines_of(config_path, pairs, first=start, count=samples, table=table, color=is_colored):
        click.echo(line, color=is_colored)
