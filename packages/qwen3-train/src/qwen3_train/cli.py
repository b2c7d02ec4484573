"""The command line of qwen3-train."""

from pathlib import Path

import click

from qwen3_model.cli_base import CONTEXT, Commands, force_option
from qwen3_train import __version__
from qwen3_train.cli_inspect import inspect_data
from qwen3_train.cli_plan import plan


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="qwen3-train")
def main() -> None:
    """Pretrain and fine-tune Qwen3 on MindSpore."""


main.add_command(plan)
main.add_command(inspect_data)


@main.command(context_settings=CONTEXT | {"ignore_unknown_options": True})
@click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="YAML of the run.",
)
@click.option("--worker-num", default=1, show_default=True, help="Processes; this version trains in one.")
@force_option("the run in the output folder")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def launch(config_path: Path, worker_num: int, overrides: tuple[str, ...], *, force: bool) -> None:
    """Train as the YAML says, with mindformers' keys; any key may follow as --section.key VALUE.

    The run's folder (output_dir) then holds checkpoint/, strategy/, msrun_log/worker_0.log, metrics.jsonl,
    config.json and run.yaml, the configuration as it was used.

    \b
    Example:
      qwen3-train launch --config configs/qwen3/demo.yaml --output_dir out \\
        --train_dataset.data_loader.config.data_path data/wiki_text_document
    """
    from qwen3_train.launch import launch_run

    launch_run(config_path, overrides, worker_num=worker_num, force=force)


@main.command()
@click.argument("run_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--width", default=78, show_default=True, help="Columns of the curve.")
def report(run_dir: Path, width: int) -> None:
    """Summarise the run in RUN_DIR, draw its loss here and as RUN_DIR/loss.png.

    \b
    Example:
      qwen3-train report out
    """
    from qwen3_train.report import write_report

    click.echo(write_report(run_dir, width))
