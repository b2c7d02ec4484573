"""How far the rank with the loss is, as the metrics file of a running job says."""

from collections.abc import Callable
from pathlib import Path

from qwen3_model.command.progress import clock
from qwen3_model.errors import FormatError
from qwen3_model.ranks.msrun.logs import tail_lines
from qwen3_train.reports.run_log import parse_metrics

RECENT_STEPS = 20


def status_of(path: Path, total_steps: int | None) -> Callable[[], str]:
    """Return what gives a line on the newest step that is written to `path` from now on, "" before one is."""
    tail = MetricsTail(path)

    def line() -> str:
        steps = tail.steps()
        return progress_line(steps, total_steps) if steps else ""

    return line


class MetricsTail:
    """The newest lines of a metrics file that this job has written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = self._signature()

    def steps(self) -> list[dict[str, float]]:
        """Return the objects of the last steps, oldest first; none while the file is an earlier run's."""
        if self._signature() in (None, self._before):
            return []
        found = []
        for line in tail_lines(self.path):
            try:
                values = parse_metrics(line)
            except (FormatError, ValueError, RecursionError):
                continue  # cut by the beginning of the tail or by a write under way
            if "loss" in values:
                found.append(values)
        return found

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


def progress_line(steps: list[dict[str, float]], total_steps: int | None) -> str:
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
