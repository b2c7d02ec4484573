"""What a launcher writes into the folder of its run, and says at its end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from qwen3_model.command.files import write_text_atomically
from qwen3_model.command.plain_text import counted
from qwen3_model.command.run_config import RunConfig
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.stop_signals import EXIT_STOPPED
from qwen3_train.checkpoints.run_folder import (
    BEST,
    RESOLVED_CONFIG,
    only_run,
    replaced_run,
    write_model_files,
)
from qwen3_train.prepare.prepare import PreparedRun
from qwen3_train.reports.run_log import RunLog
from qwen3_train.settings.run import TrainSettings
from qwen3_train.settings.unused import unused_keys


@contextmanager
def open_log(path: Path, *, append: bool, quiet: bool) -> Iterator[RunLog]:
    """Give the log of the run, in which an error of the block is said, too."""
    log = RunLog(path, append=append, quiet=quiet)
    try:
        yield log
    except BaseException as error:
        with suppress(OSError):  # a full disk must not hide the error
            log.line(f"stopped: {error or type(error).__name__}", "ERROR", to_terminal=False)
        raise
    finally:
        log.close()


@contextmanager
def folder_of(run: PreparedRun, *, owns_folder: bool, force: bool) -> Iterator[None]:
    """Keep other starts out of the run's folder, and the run before aside until this one has a checkpoint."""
    output_dir = run.settings.output_dir
    if not owns_folder:
        yield
        return
    replacing = force and not run.settings.resume.is_on and output_dir.exists()
    with only_run(output_dir), replaced_run(output_dir) if replacing else nullcontext():
        yield


def write_run(run: PreparedRun, config: RunConfig, log: RunLog) -> None:
    """Say what the run is, and write run.yaml and what belongs to the model."""
    settings, plan = run.settings, run.plan
    for note in (*config.notes, *unused_keys(config), *run.notes):
        log.line(note, "WARNING")
    steps, samples = counted(plan.num_steps, "step"), counted(plan.global_batch, "sample")
    epochs, each = counted(plan.num_epochs, "epoch"), counted(plan.steps_per_epoch, "step")
    log.line(
        f"model of {settings.model.num_parameters():,} parameters; {steps} of {samples} of "
        f"{counted(settings.data.seq_length, 'token')} ({epochs} of {each})"
    )
    if settings.layout.num_ranks > 1:
        log.line(f"{settings.layout.num_ranks} processes: {_layout_words(settings)}")
    write_text_atomically(settings.output_dir / RESOLVED_CONFIG, config.to_yaml())
    for folder in (settings.output_dir, settings.output_dir / BEST)[: 1 + settings.validation.keep_best]:
        folder.mkdir(exist_ok=True)
        write_model_files(
            folder,
            settings.model,
            settings.hf_dir,
            tokenizer_dir=settings.tokenizer_dir,
            stop_ids=run.stop_ids,
        )


def _layout_words(settings: TrainSettings) -> str:
    layout = settings.layout
    context = f" x context {layout.cp}" if layout.cp > 1 else ""
    words = [f"data {layout.data_parallel}{context} x tensor {layout.tp} x pipeline {layout.pp}"]
    words += ["sequence parallel"] * layout.sequence_parallel
    words += ["optimizer state shared out"] * settings.parallel_optimizer
    return ", ".join(words)


def say_finished(run: PreparedRun) -> None:
    """Say on stderr that nothing is left to train."""
    assert run.source is not None
    sys.stderr.write(
        f"{run.settings.output_dir} is finished with {run.source.first.name}. To train longer raise "
        "runner_config.epochs, stop_step or the patience of EarlyStopping; to begin anew choose "
        "another --output_dir, or pass --force\n"
    )


def last_words(stopped: str, output_dir: Path) -> str:
    """Return the last line of the log; `stopped` says why the run ended early, if it did."""
    if not stopped:
        return f"finished; everything is in {output_dir}"
    return (
        f"ended by {stopped}, the steps taken are saved; the same command goes on (resume_training: auto). "
        f"Exit code {EXIT_STOPPED}"
    )


def log_name(launch: LaunchSettings) -> str:
    """Return the file name of a launcher's own log."""
    return "launch.log" if launch.node_rank == 0 else f"launch_{launch.node_rank}.log"
