"""The processes of one job, found by a mark in their environment, which children inherit.

msrun puts each worker into a session of its own, so neither process groups nor parents lead to them once
msrun or the launcher is gone; the mark does, and to their children as well.
"""

import os
import signal
import time
from pathlib import Path

JOB_VARIABLE = "QWEN3_JOB"
POLL_S = 0.05
PATIENCE_S = 3.0
"""Time that processes get to end by themselves."""
CALM_S = 0.2
"""The job counts as ended when no process has been seen for this long."""


def job_pids(job: str) -> list[int]:
    """Return the living processes that carry the mark `job`, this one excluded."""
    mark = f"{JOB_VARIABLE}={job}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")  # empty for a zombie
        except OSError:
            continue
        if mark in variables:
            found.append(int(folder.name))
    return found


def end_job(job: str, *, patience_s: float = PATIENCE_S) -> int:
    """End every process of `job`: SIGTERM first, SIGKILL after `patience_s`, until none is left.

    Returns:
        How many processes there were at first.
    """
    first = job_pids(job)
    _signal(first, signal.SIGTERM)
    kill_at_s = time.monotonic() + patience_s
    calm_since_s = time.monotonic()
    while time.monotonic() - calm_since_s < CALM_S:
        if alive := job_pids(job):
            calm_since_s = time.monotonic()
            if calm_since_s >= kill_at_s:
                _signal(alive, signal.SIGKILL)
        time.sleep(POLL_S)
    return len(first)


def is_alive(pid: int) -> bool:
    """Return whether `pid` runs; a zombie does not."""
    return _state(pid) not in ("", "Z", "X")


def is_suspended(pid: int) -> bool:
    """Return whether `pid` stands still by SIGSTOP or a debugger."""
    return _state(pid) in ("T", "t")


def _state(pid: int) -> str:
    """The kernel's letter for what a process does; empty where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return ""
    return fields.split(maxsplit=1)[0]


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
