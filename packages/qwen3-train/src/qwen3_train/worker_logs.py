"""What the files of a running job say: how far the rank with the loss is, and why a worker failed."""

import json
import re
import signal
from pathlib import Path
from typing import Any

from qwen3_train.run_log import clock

TAIL_BYTES = 8192
RECENT_STEPS = 20


class MetricsTail:
    """The newest lines of a metrics file that this job has written."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._before = self._signature()

    def steps(self) -> list[dict[str, Any]]:
        """Return the objects of the last steps, oldest first; none while the file is an earlier run's."""
        if self.path is None or self._signature() in (None, self._before):
            return []
        found = []
        for line in tail_lines(self.path):
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut by the beginning of the tail or by a write under way
            if isinstance(values, dict) and "loss" in values and "step" in values:
                found.append(values)
        return found

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat() if self.path else None
        except OSError:
            return None
        return (status.st_ino, status.st_size, status.st_mtime_ns) if status else None


def progress_line(steps: list[dict[str, Any]], total_steps: int | None) -> str:
    """Return one line on the newest step: step, loss, learning rate, speed, gradient norm, time left."""
    newest = steps[-1]
    parts = [
        f"step {newest['step']}" + (f"/{total_steps}" if total_steps else ""),
        f"loss {newest['loss']:.4f}",
    ]
    if "lr" in newest:
        parts.append(f"lr {newest['lr']:.3g}")
    if "tokens_per_s" in newest:
        parts.append(f"{newest['tokens_per_s']:,.0f} tokens/s")
    if "grad_norm" in newest:
        parts.append(f"grad norm {newest['grad_norm']:.3f}")
    times_s = [step["step_time_s"] for step in steps[-RECENT_STEPS:] if "step_time_s" in step]
    if total_steps and times_s:
        left_s = (total_steps - newest["step"]) * sum(times_s) / len(times_s)
        parts.append(f"{clock(left_s)} left")
    return ", ".join(parts)


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


def exit_reason(msrun_log: Path, pid: int) -> str:
    """Return how msrun saw worker `pid` end; empty when it says nothing about it."""
    pattern = re.compile(rf"Worker process {pid} exit with exception. Error code: (-?\d+)")
    for line in tail_lines(msrun_log):
        if found := pattern.search(line):
            code = int(found[1])
            if code >= 0:
                return f"exited with code {code}"
            name = signal.Signals(-code).name
            hint = ", perhaps by the system for want of memory" if name == "SIGKILL" else ""
            return f"was killed by {name}{hint}"
    return ""
