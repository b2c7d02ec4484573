"""The command line of qwen3-train."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from qwen3_model.command.base import CONTEXT, Commands, force_option, quiet_option, say_lines
from qwen3_model.command.parsing import Option
from qwen3_model.command.types import Seconds
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.cli_options import launch_options
from qwen3_train import __version__
from qwen3_train.cli_doctor import doctor
from qwen3_train.cli_inspect import inspect_data
from qwen3_train.cli_plan import plan


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="qwen3-train")
def main() -> None:
    """Pretrain and fine-tune Qwen3 on MindSpore."""


main.add_command(doctor)
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
@launch_options
@click.option(
    "--max-time",
    metavar="TIME",
    help="Save and end before this much time has passed, as 3h30m or 11:55:00.  [default: Slurm's limit]",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Start the processes again after a failure, from the newest checkpoint, so often.",
)
@click.option(
    "--lost-node-timeout",
    "lost_node_wait",
    cls=Option,
    old=("--lost-node-wait",),
    type=Seconds(min_open=False),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Seconds to wait then for a node that is lost, before the others go on with fewer replicas.",
)
@force_option("the run in the output folder")
@quiet_option()
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def launch(  # noqa: PLR0913
    config_path: Path,
    overrides: tuple[str, ...],
    make_launch: Callable[[Path], LaunchSettings],
    *,
    max_time: str | None,
    max_restarts: int,
    lost_node_wait: float,
    force: bool,
    quiet: bool,
) -> None:
    """Train as the YAML says, with mindformers' keys.

    Any key of the YAML may follow as --section.key VALUE. To go on with a run: the same command with
    --resume_training True. What most commands give:

    \b
      --resume_training True      go on from the newest whole checkpoint of output_dir
                                  (auto: if there is one; or a folder of another run)
      --output_dir DIR            the run's folder                     [default: ./output]
      --pretrained_model_dir DIR  Hugging Face folder: config, tokenizer, first weights
      --load_checkpoint PATH      weights to begin with in place of that folder's
      --device cpu|ascend|auto    the device (context.device_target)
      --use_parallel False        one process, whatever parallel_config says
      --runner_config.epochs N, --runner_config.batch_size N
                                  short: --epochs, --batch_size, --gradient_accumulation_steps
      --train_dataset.data_loader.config.data_path PREFIX, ....data_loader.data_files FILE
                                  token files to pretrain on, conversations to fine-tune on
      --optimizer.learning_rate X
      --do_eval True              measure the loss of eval_dataset, too
      --seed N                    of weights, order of the data and dropout

    With --worker-num N the layout under parallel_config (data_parallel x model_parallel x pipeline_stage = N)
    runs in N processes, which MindSpore's msrun starts.

    The run's folder then holds checkpoint/, strategy/, msrun_log/worker_R.log, metrics.jsonl, config.json and
    run.yaml, the configuration as it was used.

    At SIGTERM, at SIGUSR1 or before --max-time the run finishes its step, saves, and ends with exit code 75;
    the same command goes on.

    \b
    Example:
      qwen3-train launch --config configs/qwen3/demo.yaml --output_dir out \\
        --train_dataset.data_loader.config.data_path data/wiki_text_document
      qwen3-train launch --worker-num 2 --config configs/qwen3/demo.yaml --output_dir out2 \\
        --train_dataset.data_loader.config.data_path data/wiki_text_document \\
        --use_parallel True --parallel_config.model_parallel 2
    """
    import time

    from qwen3_model.ranks.msrun.stop_signals import EXIT_STOPPED
    from qwen3_train.launch.launch import launch_run
    from qwen3_train.trainer.stopping import parse_duration

    end = os.environ.get("SLURM_JOB_END_TIME")
    stop_at_s = float(end) if end else None
    if max_time is not None:
        stop_at_s = time.time() + parse_duration(max_time)
    stopped = launch_run(
        config_path,
        overrides,
        make_launch=make_launch,
        environment=os.environ,
        force=force,
        quiet=quiet,
        stop_at_s=stop_at_s,
        command=("qwen3-train", *sys.argv[1:]),
        max_restarts=max_restarts,
        lost_node_s=lost_node_wait,
    )
    if stopped:
        raise SystemExit(EXIT_STOPPED)


@main.command()
@click.argument("run_dirs", metavar="RUN_DIR...", nargs=-1, required=True,
                type=click.Path(file_okay=False, path_type=Path))  # fmt: skip
@click.option("--width", default=78, show_default=True, help="Columns of the curve.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page.  [default: RUN_DIR/report.html, of several runs comparison.html]",
)
def report(run_dirs: tuple[Path, ...], width: int, output: Path | None) -> None:
    """Summarise runs: here, as a picture, and as a page.

    The picture is loss.png in RUN_DIR; several runs come beside each other.

    \b
    Example:
      qwen3-train report out
      qwen3-train report out_lr1 out_lr2 --output comparison.html
    """
    from qwen3_train.reports.report import write_report

    say_lines(write_report(run_dirs, width, output))
