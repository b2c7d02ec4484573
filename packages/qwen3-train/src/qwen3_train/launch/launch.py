"""From a command line to a run: every check first, MindSpore last.

One process trains in place. With several, this one checks and watches, and each worker (`cli_rank`) repeats
the checks from the same command line and takes its rank's part.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from qwen3_model.command.private_files import cache_home
from qwen3_model.command.run_config import RunConfig
from qwen3_model.device.cann import CANN_DIR, cann_dir, require_cann
from qwen3_model.device.simulation import Simulation, read_simulation
from qwen3_model.errors import UsageError
from qwen3_model.ranks.msrun.checks import LaunchSettings, check_launch, count_ascend_devices
from qwen3_model.ranks.msrun.launcher import Job, launch_workers
from qwen3_model.ranks.msrun.meeting import Rules
from qwen3_model.ranks.msrun.stop_signals import StopRequest, caught_stop_signals
from qwen3_train.checkpoints.run_folder import (
    METRICS,
    refuse_live_run,
)
from qwen3_train.launch.folder import folder_of, last_words, log_name, open_log, say_finished, write_run
from qwen3_train.launch.nodes import NodesRun, launch_on_nodes
from qwen3_train.launch.restarts import require_restartable, run_with_restarts
from qwen3_train.launch.run_arguments import pinned, read_config
from qwen3_train.launch.status import status_of
from qwen3_train.prepare.prepare import PreparedRun, prepare_run
from qwen3_train.prepare.run_start import append_start
from qwen3_train.reports.run_log import WORKER_LOG, RunLog
from qwen3_train.settings.resume import ResumeSettings
from qwen3_train.settings.run import TrainSettings, read_settings
from qwen3_train.trainer.stopping import STOP_AT_VARIABLE

LOST_NODE_S = 600.0


def launch_run(  # noqa: C901, PLR0913
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
    lost_node_s: float = LOST_NODE_S,
) -> str:
    """Check the run that a YAML and dotted arguments describe, then train.

    Args:
        config_path: The YAML.
        arguments: Dotted keys with values.
        make_launch: Gives the workers' settings for a run folder.
        environment: This process's, which workers get; it may ask for a dry run, see `read_simulation`.
        force: Replace the run in the output folder.
        quiet: Show no steps, only warnings; the logs have all.
        stop_at_s: Time since 1970 by which the run must have saved and ended; None for no limit.
        command: What was typed, for `starts.jsonl`.
        max_restarts: How often the processes are started again after a failure.
        lost_node_s: Seconds to wait for a node that is missing then, before the run goes on without it.

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
    require_restartable(
        max_restarts, is_alone=is_alone, mode=settings.resume.mode, force=force, joins=launch.join
    )
    # The folder belongs to node 0; the other nodes may find it filled.
    owns_folder = launch.node_rank == 0
    if owns_folder:
        refuse_live_run(settings.output_dir)
    stop_variable = {} if stop_at_s is None else {STOP_AT_VARIABLE: f"{stop_at_s}"}
    if not is_alone and launch.num_nodes > 1 and launch.join:
        rules = Rules(first_s=launch.cluster_time_out, again_s=lost_node_s, max_restarts=max_restarts)
        return launch_on_nodes(
            NodesRun(
                config_path=config_path,
                arguments=arguments,
                settings=settings,
                launch=launch,
                environment={**environment, **stop_variable},
                devices=devices,
                force=force,
                quiet=quiet,
                command=command,
                rules=rules,
            )
        )
    if force and settings.resume.mode == "auto":
        settings = replace(settings, resume=ResumeSettings(mode="never"))
    run = prepare_run(settings, force=force or not owns_folder, saves=simulation is None)
    if run.is_finished:
        say_finished(run)
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

        def start(run: PreparedRun) -> str:
            job = Job(
                argv=[*words, *pinned(run)],
                environment={**environment, **stop_variable},
                status=status_of(settings.output_dir / METRICS, run.last_step) if owns_folder else str,
                quiet=quiet,
                is_stoppable=settings.graceful_exit,
            )
            # A port that was free may still be taken by a process that has failed.
            return launch_workers(job, make_launch(settings.output_dir), num_devices=devices)

        return run_with_restarts(
            start,
            run,
            lambda: prepare_run(settings, force=True),
            max_restarts,
            lambda text: log.line(text, "WARNING"),
        )

    log_path = settings.output_dir / WORKER_LOG if is_alone else launch.log_dir / log_name(launch)
    with (
        folder_of(run, owns_folder=owns_folder, force=force),
        open_log(log_path, append=run.source is not None, quiet=quiet) as log,
    ):
        if owns_folder:
            write_run(run, config, log)
            append_start(run, command)
        stopped = work(log)
        if stopped or is_alone or launch.join:
            log.line(last_words(stopped, settings.output_dir), "WARNING" if stopped else "INFO")
    return stopped


def _refuse_forced_background(launch: LaunchSettings, *, force: bool) -> None:
    if force and not launch.join:
        raise UsageError(
            "--force cannot go with --join False; remove the old run yourself, or wait for the job"
        )


def _num_devices(settings: TrainSettings, environment: Mapping[str, str]) -> int | None:
    """Return the NPUs of this machine; None where the run needs none."""
    if settings.device != "Ascend":
        return None
    require_cann(environment)
    return count_ascend_devices(environment.get("ASCEND_RT_VISIBLE_DEVICES"))


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
    stage, replica, shard = settings.layout.coordinates(rank)
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
    from qwen3_train.trainer.trainer import set_up_device, train

    graph_mode = config.get("context.mode", 0) == 0
    set_up_device(run.settings.device, run.settings.ascend, graph_mode=graph_mode, is_worker=is_worker)
    return train(run, log, rank, saves=saves, request=request, cann=cann, cache_dir=cache_dir)
