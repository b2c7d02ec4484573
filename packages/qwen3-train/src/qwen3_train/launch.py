"""From a command line to a run: every check first, MindSpore last.

One process trains in place. With several, this one checks and watches, and each worker (`cli_rank`) repeats
the checks from the same command line and takes its rank's part.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3_model.cann import CANN_DIR, cann_dir, require_cann
from qwen3_model.errors import ConfigError, UsageError
from qwen3_model.files import write_text_atomically
from qwen3_model.msrun.checks import LaunchSettings, check_launch, count_ascend_devices
from qwen3_model.msrun.launcher import Job, launch_workers
from qwen3_model.msrun.stop_signals import EXIT_STOPPED, StopRequest, caught_stop_signals
from qwen3_model.private_files import cache_home
from qwen3_model.run_config import RunConfig, Schema, load_run_config, parse_dotted
from qwen3_model.simulation import Simulation, read_simulation
from qwen3_model.small_files import YAML_BYTES, read_small_text
from qwen3_model.yaml_loader import parse_yaml
from qwen3_train.launch_status import status_of
from qwen3_train.prepare import PreparedRun, prepare_run
from qwen3_train.reports.run_log import WORKER_LOG, RunLog
from qwen3_train.restarts import require_restartable, run_with_restarts
from qwen3_train.run_folder import (
    BEST,
    METRICS,
    RESOLVED_CONFIG,
    only_run,
    refuse_live_run,
    replaced_run,
    write_model_files,
)
from qwen3_train.run_start import append_start
from qwen3_train.settings.resume import ResumeSettings
from qwen3_train.settings.run import TrainSettings, read_settings
from qwen3_train.settings.schema import FLAG_ALIASES, TRAIN
from qwen3_train.settings.unused import unused_keys, with_winning_overrides
from qwen3_train.stopping import STOP_AT_VARIABLE


def launch_run(  # noqa: PLR0913
    config_path: Path,
    arguments: Sequence[str],
    *,
    make_launch: Callable[[Path], LaunchSettings],
    environment: Mapping[str, str],
    force: bool,
    quiet: bool = False,
    stop_at_s: float | None = None,
    command: Sequence[str] = (),
    max_restarts: int = 0,
) -> str:
    """Check the run that a YAML and dotted arguments describe, then train.

    Args:
        config_path: The YAML.
        arguments: Dotted keys with values.
        make_launch: Gives the workers' settings for a run folder.
        environment: Of this process, for the workers; may ask for a dry run, see `read_simulation`.
        force: Replace the run in the output folder.
        quiet: Show no steps, only warnings; the logs have all.
        stop_at_s: Time since 1970 by which the run must have saved and ended; None for no limit.
        command: What was typed, for `starts.jsonl`.
        max_restarts: How often the processes are started again after a failure.

    Returns:
        Why the run ended before its last step, a signal or the time limit; "" where it did not.

    Raises:
        UsageError: An argument cannot be meant.
        Qwen3Error: The run cannot work, for the reason given.
    """
    config = read_config(config_path, arguments)
    launch = make_launch(Path())
    simulation = read_simulation(environment)
    worker_num = simulation.num_ranks if simulation else launch.worker_num
    settings = read_settings(config, worker_num=worker_num, simulation=simulation)
    launch = make_launch(settings.output_dir)
    devices = _num_devices(settings, environment) if simulation is None else None
    is_alone = worker_num == 1 or simulation is not None
    _refuse_forced_background(launch, force=force and not is_alone)
    require_restartable(max_restarts, is_alone=is_alone, mode=settings.resume.mode, force=force)
    # The folder belongs to node 0; the other nodes may find it filled.
    owns_folder = launch.node_rank == 0
    if owns_folder:
        refuse_live_run(settings.output_dir)
    if force and settings.resume.mode == "auto":
        settings = replace(settings, resume=ResumeSettings(mode="never"))
    run = prepare_run(settings, force=force or not owns_folder, saves=simulation is None)
    if run.is_finished:
        _say_finished(run)
        return ""
    if not is_alone:
        check_launch(launch, num_devices=devices)

    def work(log: RunLog) -> str:
        if is_alone:
            return _train_here(
                run,
                config,
                log,
                simulation,
                StopRequest(stop_at_s),
                cann=cann_dir(environment),
                cache_dir=_user_cache(environment),
            )
        words = ["-m", "qwen3_train.cli_rank", "--config", str(config_path), *arguments]
        told = {} if stop_at_s is None else {STOP_AT_VARIABLE: f"{stop_at_s}"}

        def start(run: PreparedRun) -> str:
            job = Job(
                argv=[*words, *_pinned(run)],
                environment={**environment, **told},
                status=status_of(settings.output_dir / METRICS, run.last_step) if owns_folder else str,
                quiet=quiet,
                is_stoppable=settings.graceful_exit,
            )
            # A port that was free may still be held by what has failed.
            return launch_workers(job, make_launch(settings.output_dir), num_devices=devices)

        return run_with_restarts(
            start,
            run,
            lambda: prepare_run(settings, force=True),
            max_restarts,
            lambda text: log.line(text, "WARNING"),
        )

    log_path = settings.output_dir / WORKER_LOG if is_alone else launch.log_dir / _log_name(launch)
    with (
        _folder_of(run, owns_folder=owns_folder, force=force),
        _open_log(log_path, append=run.source is not None, quiet=quiet) as log,
    ):
        if owns_folder:
            _write_run(run, config, log)
            append_start(run, command)
        stopped = work(log)
        if stopped or is_alone or launch.join:
            log.line(_last_words(stopped, settings.output_dir), "WARNING" if stopped else "INFO")
    return stopped


def _refuse_forced_background(launch: LaunchSettings, *, force: bool) -> None:
    if force and not launch.join:
        raise UsageError(
            "--force cannot go with --join False; remove the old run yourself, or wait for the job"
        )


@contextmanager
def _open_log(path: Path, *, append: bool, quiet: bool) -> Iterator[RunLog]:
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
def _folder_of(run: PreparedRun, *, owns_folder: bool, force: bool) -> Iterator[None]:
    """Keep other starts out of the run's folder, and the run before aside until this one has a checkpoint."""
    output_dir = run.settings.output_dir
    if not owns_folder:
        yield
        return
    replacing = force and not run.settings.resume.is_on and output_dir.exists()
    with only_run(output_dir), replaced_run(output_dir) if replacing else nullcontext():
        yield


def _last_words(stopped: str, output_dir: Path) -> str:
    if not stopped:
        return f"finished; everything is in {output_dir}"
    return (
        f"ended by {stopped}, the steps taken are saved; the same command goes on (resume_training: auto). "
        f"Exit code {EXIT_STOPPED}"
    )


def _num_devices(settings: TrainSettings, environment: Mapping[str, str]) -> int | None:
    """Return the NPUs of this machine; None where the run needs none."""
    if settings.device != "Ascend":
        return None
    require_cann(environment)
    return count_ascend_devices(environment.get("ASCEND_RT_VISIBLE_DEVICES"))


def read_config(config_path: Path, arguments: Sequence[str], schema: Schema = TRAIN) -> RunConfig:
    """Return the YAML with the dotted arguments put in; what these say wins over another spelling of it.

    Raises:
        UsageError, ConfigError: A key is unknown or a value cannot be meant.
    """
    overrides = read_overrides(arguments)
    if _run_mode(config_path, overrides) == "predict":
        raise UsageError(
            "run_mode='predict' is not for this command; use qwen3-infer generate or qwen3-infer plan with "
            f"--config {config_path}"
        )
    return load_run_config(config_path, overrides, schema)


def read_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return the dotted arguments as keys and values, with what they switch off in the YAML.

    Raises:
        UsageError: An argument cannot be meant, or two say the same thing.
    """
    pairs = [(FLAG_ALIASES.get(key, key), value) for key, value in parse_dotted(arguments)]
    return with_winning_overrides(pairs)


def _run_mode(config_path: Path, overrides: Sequence[tuple[str, str]]) -> Any:
    """Return the run's mode before its keys are checked, which in a YAML for prediction are others."""
    stated = dict(overrides).get("run_mode")
    if stated is None and config_path.is_file():
        with suppress(ConfigError, UnicodeDecodeError):
            values = parse_yaml(read_small_text(config_path, YAML_BYTES), str(config_path))
            stated = values.get("run_mode") if isinstance(values, dict) else None
    return stated


def run_rank(
    config_path: Path,
    arguments: Sequence[str],
    *,
    rank: int,
    worker_num: int,
    request: StopRequest | None = None,
    cann: Path = CANN_DIR,
) -> str:
    """Take one rank's part of a run that `launch_run` has checked; what it says goes to the worker's log.

    Returns:
        As `launch_run`.

    Raises:
        Qwen3Error: As `launch_run`.
    """
    config = read_config(config_path, arguments)
    settings = read_settings(config, worker_num=worker_num)
    run = prepare_run(settings, force=True, is_checked=True)
    log = RunLog(None, append=True)
    stage, replica, shard = settings.layout.place(rank)
    log.line(f"rank {rank}: pipeline stage {stage}, replica {replica}, shard {shard}")
    return _train(run, config, log, rank, is_worker=True, request=request, cann=cann)


def _user_cache(environment: Mapping[str, str]) -> Path | None:
    try:
        return cache_home(environment) / "qwen3-train"
    except RuntimeError:  # there is no home folder
        return None


def _train_here(
    run: PreparedRun,
    config: RunConfig,
    log: RunLog,
    simulation: Simulation | None,
    request: StopRequest,
    *,
    cann: Path,
    cache_dir: Path | None,
) -> str:
    if simulation is None:
        log.line("importing MindSpore and compiling; the first step takes a while")
        with caught_stop_signals(request) if run.settings.graceful_exit else nullcontext():
            return _train(run, config, log, request=request, cann=cann, cache_dir=cache_dir)
    log.line(
        f"dry run of rank {simulation.rank} of {simulation.num_ranks}: nothing is computed or saved, no loss "
        "below means anything",
        "WARNING",
    )
    return _train(run, config, log, simulation.rank, is_worker=simulation.num_ranks > 1, saves=False)


def _train(  # noqa: PLR0913
    run: PreparedRun,
    config: RunConfig,
    log: RunLog,
    rank: int = 0,
    *,
    is_worker: bool = False,
    saves: bool = True,
    request: StopRequest | None = None,
    cann: Path = CANN_DIR,
    cache_dir: Path | None = None,
) -> str:
    from qwen3_train.trainer import set_up_device, train

    graph_mode = config.get("context.mode", 0) == 0
    set_up_device(run.settings.device, run.settings.ascend, graph_mode=graph_mode, is_worker=is_worker)
    return train(run, log, rank, saves=saves, request=request, cann=cann, cache_dir=cache_dir)


def _write_run(run: PreparedRun, config: RunConfig, log: RunLog) -> None:
    settings, plan = run.settings, run.plan
    for note in (*config.notes, *unused_keys(config), *run.notes):
        log.line(note, "WARNING")
    log.line(
        f"model of {settings.model.num_parameters():,} parameters; {plan.num_steps} steps of "
        f"{plan.global_batch} samples of {settings.data.seq_length} tokens ({plan.num_epochs} epochs of "
        f"{plan.steps_per_epoch} steps)"
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
    words = [f"data {layout.dp} x tensor {layout.tp} x pipeline {layout.pp}"]
    words += ["sequence parallel"] * layout.sequence_parallel
    words += ["optimizer state shared out"] * settings.parallel_optimizer
    return ", ".join(words)


def _pinned(run: PreparedRun) -> list[str]:
    """Name the checkpoint that was chosen, so that all workers take the same."""
    source = run.source
    if source is None:
        return ["--resume_training", "False", "--ignore_data_skip", "False", "--data_skip_steps", "0"]
    if source.merged is not None:
        return ["--resume_training", "True", "--load_checkpoint", str(source.merged)]
    return ["--resume_training", str(source.first.absolute())]


def _say_finished(run: PreparedRun) -> None:
    assert run.source is not None
    sys.stderr.write(
        f"{run.settings.output_dir} is finished with {run.source.first.name}. To train longer raise "
        "runner_config.epochs, stop_step or the patience of EarlyStopping; to begin anew choose "
        "another --output_dir, or pass --force\n"
    )


def _log_name(launch: LaunchSettings) -> str:
    return "launch.log" if launch.node_rank == 0 else f"launch_{launch.node_rank}.log"
