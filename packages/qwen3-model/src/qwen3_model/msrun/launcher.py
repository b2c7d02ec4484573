"""Start the workers of a job through msrun, watch them, and leave no process behind.

msrun starts the scheduler and the workers and waits for them; on a failure it waits a minute for the
scheduler, and when it is killed its workers live on. So the launcher watches the workers' own records, ends
the whole job at the first failure, and has a guard (`job_guard`) for its own sudden death.
"""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3_model.errors import Qwen3Error
from qwen3_model.msrun.checks import LaunchSettings, check_launch, find_msrun, interpreter_name
from qwen3_model.msrun.guard import guarded
from qwen3_model.msrun.live_line import LiveLine
from qwen3_model.msrun.logs import exit_reason, last_sentence
from qwen3_model.msrun.processes import JOB_VARIABLE, end_job, is_alive
from qwen3_model.msrun.records import (
    DONE,
    FAILED,
    LOG_DIR_VARIABLE,
    RUNNING,
    SCHEDULER,
    THREADS_VARIABLE,
    WorkerRecord,
    read_records,
    remove_records,
)
from qwen3_model.progress import clock

POLL_S = 0.1
SETTLE_S = 1.5
"""Time after a first failure in which an earlier one may still be reported."""
FAREWELL_S = 60.0
"""Time for msrun to end after its workers have."""
COLLECTIVE_VARIABLE, COLLECTIVE_S = "MS_CPU_COMM_OP_TIMEOUT", "1800"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to run and what to show of it."""

    argv: Sequence[str]
    """What would follow `python`: a script or `-m module`, with its arguments."""
    environment: Mapping[str, str]
    """Environment of the workers."""
    status: Callable[[], str | None] = str
    """Gives one line on how far the job is, "" before there is anything to say; None takes the line away, for
    a job that from then on writes to the terminal itself when it is asked."""
    quiet: bool = False
    is_over: Callable[[], bool] = lambda: False
    """Says whether the workers may be ended, finished or not."""


def launch_workers(
    job: Job, settings: LaunchSettings, *, num_devices: int | None = None, msrun: Path | None = None
) -> None:
    """Run `job` in the workers of this node until all have finished.

    With `settings.join` false the job goes on in the background, watched by a process that is named.

    Args:
        job: The command.
        settings: The workers.
        num_devices: Devices of this machine; None where workers share the processor.
        msrun: Another msrun than the interpreter's own.

    Raises:
        ConfigError: The job cannot start, for all reasons given.
        Qwen3Error: A worker failed; the sentence names the first one, its error and its log.
    """
    check_launch(settings, num_devices=num_devices)
    command = msrun_command(job.argv, settings, msrun or find_msrun())
    if settings.join:
        _supervise(job, settings, command)
    elif not _go_to_background(settings):
        try:
            _supervise(replace(job, quiet=True), settings, command)
        except BaseException as error:
            sys.stderr.write(f"Error: {error}\n")
            os._exit(1)
        os._exit(0)


def msrun_command(argv: Sequence[str], settings: LaunchSettings, msrun: Path) -> list[str]:
    """Return the command line of msrun, run by this interpreter."""
    return [
        sys.executable, str(msrun),
        f"--worker_num={settings.worker_num}", f"--local_worker_num={settings.local_worker_num}",
        f"--master_addr={settings.master_addr}", f"--master_port={settings.master_port}",
        f"--node_rank={settings.node_rank}", f"--log_dir={settings.log_dir.absolute()}",
        f"--cluster_time_out={settings.cluster_time_out}", "--join=True",
        f"--tail_worker_log={settings.worker_num}",  # no such rank; else msrun shows all logs
        interpreter_name(), "-m", "qwen3_model.msrun.cli_worker", *argv,
    ]  # fmt: skip


def worker_environment(environment: Mapping[str, str], settings: LaunchSettings, job: str) -> dict[str, str]:
    """Return `environment` with the job's mark, this interpreter first on PATH, a share of the threads."""
    cores = len(os.sched_getaffinity(0))
    threads = environment.get("OMP_NUM_THREADS") or str(max(1, cores // settings.local_worker_num))
    folder = str(Path(sys.executable).parent)
    return {
        **environment,
        "PATH": os.pathsep.join(part for part in (folder, environment.get("PATH", "")) if part),
        "PYTHONUNBUFFERED": "1",  # so that a killed worker's log has all it said
        # Seconds for which a CPU's collective waits for a slower rank, which may be compiling or saving; a
        # dead one ends the job long before. MindSpore's own limit is 30.
        COLLECTIVE_VARIABLE: environment.get(COLLECTIVE_VARIABLE, COLLECTIVE_S),
        JOB_VARIABLE: job,
        LOG_DIR_VARIABLE: str(settings.log_dir.absolute()),
        THREADS_VARIABLE: threads,
    }


def _supervise(job: Job, settings: LaunchSettings, command: list[str]) -> None:
    mark, names = uuid.uuid4().hex, _names(settings)
    remove_records(settings.log_dir, names)
    for name in names:
        (settings.log_dir / f"{name}.log").unlink(missing_ok=True)
    with guarded(mark), settings.msrun_log.open("wb") as log, LiveLine(quiet=job.quiet) as line:
        msrun = subprocess.Popen(
            command,
            env=worker_environment(job.environment, settings, mark),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends the rest
        )
        try:
            _watch(job, settings, msrun, line)
        finally:
            end_job(mark)
            msrun.wait()


def _watch(job: Job, settings: LaunchSettings, msrun: subprocess.Popen[bytes], line: LiveLine) -> None:
    """Return when all workers have finished; raise Qwen3Error at the first failure."""
    names, started_s = _names(settings), time.monotonic()
    done_s = None
    while not job.is_over():
        code = msrun.poll()
        records = read_records(settings.log_dir, names)
        states = [record.state for record in records.values() if record.name != SCHEDULER]
        all_done = states.count(DONE) == settings.local_worker_num
        failed = [record for record in records.values() if _has_failed(settings.log_dir, record)]
        if failed and not all_done and (failure := _first_failure(settings, failed)):
            raise Qwen3Error(failure)
        if code is not None:
            if code == 0 and all_done:
                return
            raise Qwen3Error(_msrun_sentence(settings, code))
        if all_done:
            done_s = done_s or time.monotonic()
            if time.monotonic() - done_s > FAREWELL_S:
                return
        line.show(_status(job, settings, len(states), time.monotonic() - started_s))
        time.sleep(POLL_S)


def _names(settings: LaunchSettings) -> list[str]:
    """Whom this node has started: its workers, and on node 0 the scheduler."""
    return [f"worker_{rank}" for rank in settings.ranks] + [SCHEDULER] * (settings.node_rank == 0)


def _has_failed(log_dir: Path, record: WorkerRecord) -> bool:
    if record.state == RUNNING and not is_alive(record.pid):
        # It may have written its end between the two looks.
        return read_records(log_dir, [record.name])[record.name].state != DONE
    return record.state == FAILED


def _first_failure(settings: LaunchSettings, seen: list[WorkerRecord]) -> str:
    """Wait until all who fail for the same reason have said so, and describe the first.

    Args:
        settings: The job.
        seen: Who had failed when the first failure was noticed; soon after, msrun kills the others.

    Returns:
        A sentence, empty when it is only the scheduler, which goes without a word once all workers are done.
    """
    seen_s = time.time()
    time.sleep(SETTLE_S)
    records = read_records(settings.log_dir, _names(settings))
    if all(record.state == DONE for record in records.values() if record.name != SCHEDULER):
        return ""
    failures = []
    for record in records.values():
        log = settings.log_dir / f"{record.name}.log"
        if record.state == FAILED:
            reason = f"{record.title} failed: {record.error or last_sentence(log)}; see {log}"
            failures.append((record.time_s, reason))
        elif record.state == RUNNING and record.name in {one.name for one in seen}:
            how = exit_reason(settings.msrun_log, record.pid)
            # Of those that vanished together, msrun names the one that did not die by its hand.
            noticed_s = seen_s if how else seen_s + POLL_S
            failures.append((noticed_s, f"{record.title} {how or 'was killed or lost'}; see {log}"))
    return min(failures)[1] if failures else ""


def _msrun_sentence(settings: LaunchSettings, code: int) -> str:
    how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
    said = last_sentence(settings.msrun_log)
    return f"msrun ended {how} before all workers had finished: {said}; see {settings.msrun_log}"


def _status(job: Job, settings: LaunchSettings, num_up: int, elapsed_s: float) -> str | None:
    if (said := job.status()) != "":
        return said
    if num_up < settings.local_worker_num:
        return f"starting: {num_up} of {settings.local_worker_num} workers up, {clock(elapsed_s)}"
    return f"{num_up} workers run, {clock(elapsed_s)}"


def _go_to_background(settings: LaunchSettings) -> bool:
    """Fork; return True in the process that goes back to the shell."""
    if pid := os.fork():
        logs = settings.log_dir / f"worker_{settings.ranks[0]}.log"
        sys.stdout.write(
            f"Running in the background; follow it with tail -f {logs}, end it with kill {pid}\n"
        )
        return True
    os.setsid()
    with (settings.log_dir / "launcher.log").open("wb") as log, Path(os.devnull).open("rb") as nothing:
        for stream, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(stream.fileno(), number)
    return False
