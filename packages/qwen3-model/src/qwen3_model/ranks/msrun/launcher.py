"""Start the workers of a job through msrun, watch them, and leave no process behind.

msrun starts the scheduler and the workers and waits for them; on a failure it waits a minute for the
scheduler, and when it is killed its workers live on. So the launcher watches the workers' own records, ends
the whole job at the first failure, and has a guard (`job_guard`) for its own sudden death.
"""

import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3_model.command.plain_text import as_message
from qwen3_model.command.progress import clock
from qwen3_model.errors import Qwen3Error
from qwen3_model.ranks.msrun.checks import LaunchSettings, check_launch, find_msrun, interpreter_name
from qwen3_model.ranks.msrun.guard import guarded
from qwen3_model.ranks.msrun.live_line import LiveLine
from qwen3_model.ranks.msrun.logs import exit_reason, last_sentence, timed_out_ranks
from qwen3_model.ranks.msrun.processes import JOB_VARIABLE, PATIENCE_S, end_job, is_alive, is_suspended
from qwen3_model.ranks.msrun.record_look import RecordLook
from qwen3_model.ranks.msrun.records import (
    ENDED,
    FAILED,
    LOG_DIR_VARIABLE,
    NODE_VARIABLE,
    RUNNING,
    SCHEDULER,
    STOPPED,
    THREADS_VARIABLE,
    WorkerRecord,
    read_records,
    remove_records,
)
from qwen3_model.ranks.msrun.stop_signals import (
    EXIT_STOPPED,
    StopRequest,
    blocked_stop_signals,
    caught_stop_signals,
)

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
    is_stoppable: bool = False
    """Whether the workers save and end when they are asked to (`stop_signals`)."""


def launch_workers(
    job: Job, settings: LaunchSettings, *, num_devices: int | None = None, msrun: Path | None = None
) -> str:
    """Run `job` in the workers of this node until all have finished.

    With `settings.join` false the job goes on in the background, watched by a process that is named.

    Args:
        job: The command.
        settings: The workers.
        num_devices: Devices of this machine; None where workers share the processor.
        msrun: Another msrun than the interpreter's own.

    Returns:
        What has asked a stoppable job to end before its time; "" where it has finished.

    Raises:
        ConfigError: The job cannot start, for all reasons given.
        Qwen3Error: A worker failed; the sentence names the first one, its error and its log.
    """
    check_launch(settings, num_devices=num_devices)
    command = msrun_command(job.argv, settings, msrun or find_msrun())
    if settings.join:
        return _supervise(job, settings, command)
    if not _go_to_background(settings):
        try:
            stopped = _supervise(replace(job, quiet=True), settings, command)
        except BaseException as error:
            sys.stderr.write(f"Error: {as_message(str(error))}\n")
            os._exit(1)
        os._exit(EXIT_STOPPED if stopped else 0)
    return ""


def msrun_command(argv: Sequence[str], settings: LaunchSettings, msrun: Path) -> list[str]:
    """Return the command line of msrun, run by this interpreter."""
    return [
        sys.executable, str(msrun),
        f"--worker_num={settings.worker_num}", f"--local_worker_num={settings.local_worker_num}",
        f"--master_addr={settings.master_addr}", f"--master_port={settings.master_port}",
        f"--node_rank={settings.node_rank}", f"--log_dir={settings.log_dir.absolute()}",
        f"--cluster_time_out={math.ceil(settings.cluster_time_out)}", "--join=True",
        f"--tail_worker_log={settings.worker_num}",  # no such rank; else msrun shows all logs
        interpreter_name(), "-m", "qwen3_model.ranks.msrun.cli_worker", *argv,
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
        NODE_VARIABLE: str(settings.node_rank),
        THREADS_VARIABLE: threads,
    }


def _supervise(job: Job, settings: LaunchSettings, command: list[str]) -> str:
    """Start msrun and watch the job; return what has asked it to end before its time, or ""."""
    request = StopRequest()
    stopping = caught_stop_signals(request) if job.is_stoppable else nullcontext()
    # A worker that saves at SIGTERM would not end by it.
    patience_s = 0.0 if job.is_stoppable else PATIENCE_S
    mark, names = uuid.uuid4().hex, _names(settings)
    remove_records(settings.log_dir, names)
    for name in names:
        (settings.log_dir / f"{name}.log").unlink(missing_ok=True)
    with (
        stopping,
        guarded(mark, patience_s=patience_s),
        settings.msrun_log.open("wb") as log,
        LiveLine(quiet=job.quiet) as line,
    ):
        with blocked_stop_signals() if job.is_stoppable else nullcontext():
            msrun = subprocess.Popen(
                command,
                env=worker_environment(job.environment, settings, mark),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends the rest
            )
        try:
            return _watch(job, settings, msrun, line, request)
        finally:
            end_job(mark, patience_s=patience_s)
            msrun.wait()


def _watch(
    job: Job, settings: LaunchSettings, msrun: subprocess.Popen[bytes], line: LiveLine, request: StopRequest
) -> str:
    """Return when all workers have ended well; raise Qwen3Error at the first failure."""
    started_s, asked = time.monotonic(), set[int]()
    look = RecordLook(settings.log_dir, _names(settings))
    done_s, suspended = None, dict[str, WorkerRecord]()
    while not job.is_over():
        code = msrun.poll()
        records = look.records(at_once=code is not None or request.by is not None)
        workers = [record for record in records.values() if record.name != SCHEDULER]
        if request.by is not None:
            _ask_to_stop(workers, asked)
        all_done = sum(record.state in ENDED for record in workers) == settings.local_worker_num
        stopped = next((record.error for record in workers if record.state == STOPPED), "")
        if stopped and request.by is not None:
            stopped = request.by.name  # the signal that workers got is not the one that came
        failed = [record for record in records.values() if _has_failed(settings.log_dir, record)]
        before, suspended = suspended, {each.name: each for each in workers if is_suspended(each.pid)}
        if failed and not all_done and (failure := _first_failure(settings, failed, suspended or before)):
            raise Qwen3Error(failure)
        if line.is_due() or all_done:
            line.show(_status(job, settings, len(workers), time.monotonic() - started_s))
        if code is not None:
            if code == 0 and all_done:
                return stopped
            raise Qwen3Error(_msrun_sentence(settings, code))
        if all_done:
            done_s = done_s or time.monotonic()
            if time.monotonic() - done_s > FAREWELL_S:
                return stopped
        time.sleep(POLL_S)
    return ""


def _ask_to_stop(workers: list[WorkerRecord], asked: set[int]) -> None:
    """Hand the request on to each worker that runs, once; one without a record does not listen yet."""
    for record in workers:
        if record.state == RUNNING and record.pid not in asked:
            asked.add(record.pid)
            with suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGUSR1)


def _names(settings: LaunchSettings) -> list[str]:
    """Whom this node has started: its workers, and on node 0 the scheduler."""
    return [f"worker_{rank}" for rank in settings.ranks] + [SCHEDULER] * (settings.node_rank == 0)


def _has_failed(log_dir: Path, record: WorkerRecord) -> bool:
    if record.state == RUNNING and not is_alive(record.pid):
        # It may have written its end between the two looks.
        return read_records(log_dir, [record.name])[record.name].state not in ENDED
    return record.state == FAILED


def _first_failure(
    settings: LaunchSettings, seen: list[WorkerRecord], suspended: Mapping[str, WorkerRecord]
) -> str:
    """Wait until all who fail for the same reason have said so, and describe the first.

    Args:
        settings: The job.
        seen: Who had failed when the first failure was noticed; soon after, msrun kills the others.
        suspended: Who stood still when it was.

    Returns:
        A sentence, empty when it is only the scheduler, which goes without a word once all workers are done.
    """
    seen_s = time.time()
    time.sleep(SETTLE_S)
    records = read_records(settings.log_dir, _names(settings))
    if all(record.state in ENDED for record in records.values() if record.name != SCHEDULER):
        return ""
    if hung := _hung_rank(settings, suspended):
        return hung
    failures = []
    for record in records.values():
        log = settings.log_dir / f"{record.name}.log"
        if record.state == FAILED:
            reason = f"{record.title} failed: {record.error or last_sentence(log)}; see {log}"
            failures.append((record.time_s, reason))
        elif record.state == RUNNING and record.name in {one.name for one in seen}:
            how = exit_reason(settings.msrun_log, record.pid)
            # Where several vanished together, msrun names the one that did not die by its hand.
            noticed_s = seen_s if how else seen_s + POLL_S
            failures.append((noticed_s, f"{record.title} {how or 'was killed or lost'}; see {log}"))
    return min(failures)[1] if failures else ""


def _hung_rank(settings: LaunchSettings, suspended: Mapping[str, WorkerRecord]) -> str:
    """Describe a worker that no longer answers; the others end for want of it."""
    for record in suspended.values():
        return (
            f"{record.title} stands still: its process {record.pid} was suspended, by SIGSTOP or a debugger; "
            f"see {settings.log_dir / record.name}.log"
        )
    log = settings.log_dir / f"{SCHEDULER}.log"
    for rank in timed_out_ranks(log) if settings.node_rank == 0 else []:
        return f"rank {rank} no longer answers, it hangs or its node is lost; see {log}"
    return ""


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
