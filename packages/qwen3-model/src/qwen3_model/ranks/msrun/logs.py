"""What the files of a running job say about why a worker failed."""

import re
import signal
from pathlib import Path

TAIL_BYTES = 8192
HINTS = {
    "SIGKILL": ", perhaps by the system for want of memory",
    "SIGBUS": ", perhaps since a file that it had mapped was cut, or its disk failed",
}


def tail_lines(path: Path) -> list[str]:
    """Return the lines in the last part of a file; none when it is missing."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def last_sentence(path: Path) -> str:
    """Return the last `Error: ` line of a log without that word, or the last line with text."""
    lines = [line.strip() for line in tail_lines(path) if line.strip()]
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return (errors or lines or ["it wrote nothing"])[-1]


def timed_out_ranks(scheduler_log: Path) -> list[int]:
    """Return the ranks from which the scheduler has heard nothing for too long."""
    found = (re.search(r"node: ?(\d+) is timed out", line) for line in tail_lines(scheduler_log))
    return sorted({int(match[1]) for match in found if match})


def exit_reason(msrun_log: Path, pid: int) -> str:
    """Return how msrun saw worker `pid` end; empty when it says nothing about it."""
    pattern = re.compile(rf"Worker process {pid} exit with exception. Error code: (-?\d+)")
    for line in tail_lines(msrun_log):
        if found := pattern.search(line):
            code = int(found[1])
            if code >= 0:
                return f"exited with code {code}"
            name = signal.Signals(-code).name
            hint = HINTS.get(name, "")
            return f"was killed by {name}{hint}"
    return ""
