"""What the benches read of processes: memory in bytes, and seconds of the processor.

Needs the standard library alone, since peers are measured in environments of their own.
"""

import os
import resource
from pathlib import Path


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    return _status("self")["VmHWM"]


def private_bytes(pid: int) -> int:
    """Return the resident memory of a process that is not shared with files; 0 for one that has ended."""
    try:
        return _status(str(pid)).get("RssAnon", 0)
    except OSError:
        return 0


def private_bytes_below(root: int) -> int:
    """Return the same of a process and of all that descend from it."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
    total, found = 0, [root]
    while found:
        pid = found.pop()
        total += private_bytes(pid)
        found += [child for child, parent in parents.items() if parent == pid]
    return total


def cpu_seconds(pid: int) -> float:
    """Return the seconds of the processor that a living process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_seconds_of_children() -> float:
    """Return those of all processes below this one that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _status(process: str) -> dict[str, int]:
    """Return the amounts of /proc/PROCESS/status in bytes; they are written in kB of 1024."""
    lines = Path(f"/proc/{process}/status").read_text("utf-8", "replace").splitlines()
    amounts = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in amounts}
