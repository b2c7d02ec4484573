"""What each worker says of itself in `log_dir`: that it runs, has finished, or what stopped it and when."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen3_model.command.files import write_text_atomically
from qwen3_model.command.narrow import as_int, as_number, as_section, as_text, at_key
from qwen3_model.errors import FormatError

RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped", "failed"
ENDED = (DONE, STOPPED)
"""States of a worker that has ended well; `STOPPED` before its time, because it was asked to."""
SCHEDULER = "scheduler"
LOG_DIR_VARIABLE = "QWEN3_LOG_DIR"
"""Tells a worker where its record belongs."""
NODE_VARIABLE = "QWEN3_NODE"
"""Tells a process the number of its node."""
THREADS_VARIABLE = "QWEN3_THREADS"
"""Tells a worker its share of the processor's threads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerRecord:
    """The last state of a worker or of the scheduler."""

    name: str
    """worker_R with R its rank, or scheduler; its log is `log_dir/<name>.log`."""
    pid: int
    state: str
    time_s: float
    """When the state began, seconds since 1970."""
    error: str = ""
    """One line; empty where the log has the sentence. Of `STOPPED`, what asked for it."""

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.name.replace("worker_", "rank ")


def write_record(log_dir: Path, name: str, pid: int, state: str, error: str = "") -> None:
    """Replace the record of `name`."""
    record = WorkerRecord(name=name, pid=pid, state=state, time_s=time.time(), error=error)
    write_text_atomically(record_path(log_dir, name), json.dumps(asdict(record)))


def read_records(log_dir: Path, names: Iterable[str]) -> dict[str, WorkerRecord]:
    """Return the records of `names` that exist; the folder may be shared with other nodes.

    Raises:
        FormatError: A record is of another form, as a job of another version writes it.
    """
    records = {}
    for name in names:
        path = record_path(log_dir, name)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        try:
            records[name] = _parse(text)
        except (ValueError, RecursionError, FormatError) as error:
            raise FormatError(
                f"{path} is no record of a worker: {error}; give this job a --log-dir of its own"
            ) from None
    return records


def _parse(text: str) -> WorkerRecord:
    stated = as_section(json.loads(text))
    return WorkerRecord(
        name=at_key(stated, "name", as_text),
        pid=at_key(stated, "pid", as_int),
        state=at_key(stated, "state", as_text),
        time_s=at_key(stated, "time_s", as_number),
        error=at_key(stated, "error", as_text, ""),
    )


def remove_records(log_dir: Path, names: Iterable[str]) -> None:
    """Forget an earlier job."""
    for name in names:
        record_path(log_dir, name).unlink(missing_ok=True)


def record_path(log_dir: Path, name: str) -> Path:
    """Return the file of a record."""
    return log_dir / f".{name}.state.json"
