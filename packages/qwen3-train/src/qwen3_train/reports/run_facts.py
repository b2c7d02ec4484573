"""A run's folder as its report reads it: steps, evaluations, starts, and what sums them up."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.command.plain_text import counted
from qwen3_model.command.progress import clock
from qwen3_model.errors import FormatError
from qwen3_train.checkpoints.run_folder import METRICS, RESOLVED_CONFIG, STARTS
from qwen3_train.reports.run_log import read_metrics

WRITTEN_WITH = {"loss": ("lr", "tokens_per_s", "step_time_s"), "eval_loss": ("eval_perplexity",)}
"""What stands in each line that has a loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished or running run."""

    name: str
    """Name of its folder."""
    lines: list[dict[str, float]]
    """Lines of the metrics file: steps and evaluations."""
    starts: list[dict[str, object]]
    """What each start of the run said of itself; empty for a run that says nothing."""
    configuration: str

    @property
    def steps(self) -> list[dict[str, float]]:
        """Lines of the steps."""
        return [line for line in self.lines if "loss" in line]

    @property
    def evaluations(self) -> list[dict[str, float]]:
        """Lines of the evaluations."""
        return [line for line in self.lines if "eval_loss" in line]

    @property
    def compiling_steps(self) -> frozenset[int]:
        """The first step of each start, whose time says nothing of the others."""
        stated = (start.get("after_step") for start in self.starts)
        after = [step for step in stated if isinstance(step, int)]
        return frozenset({int(self.steps[0]["step"]), *(step + 1 for step in after)})

    def facts(self) -> Iterator[tuple[str, str]]:
        """Give name and value of what sums the run up."""
        yield from self.summary()
        if not self.starts:
            return
        last = self.starts[-1]
        times = f", started {len(self.starts)} times" if len(self.starts) > 1 else ""
        yield "started", f"{self.starts[0].get('time', '')}{times}"
        yield "host", f"{last.get('host', '')}, {last.get('machine', '')}"
        versions = last.get("versions")
        if isinstance(versions, dict):
            yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
        command = last.get("command")
        if isinstance(command, list):
            yield "command", shlex.join(map(str, command))

    def summary(self) -> Iterator[tuple[str, str]]:
        """Give name and value of what its numbers say."""
        steps, evaluations = self.steps, self.evaluations
        first, last = steps[0], steps[-1]
        measured = [line for line in steps if line["step"] not in self.compiling_steps] or steps
        yield "steps", f"{first['step']} to {last['step']}"
        lowest = min(line["loss"] for line in steps)
        yield "loss", f"{first['loss']:.4f} -> {last['loss']:.4f}, lowest {lowest:.4f}"
        speeds = sorted(line["tokens_per_s"] for line in measured)
        used = sorted(line["mfu"] for line in measured if "mfu" in line)
        share = f", {used[len(used) // 2]:.1%} of the device's peak (MFU)" if used else ""
        yield "speed", f"{speeds[len(speeds) // 2]:.0f} tokens/s (median){share}"
        total_s = sum(line["step_time_s"] for line in steps)
        yield "time", f"{clock(total_s)} in steps, {first['step_time_s']:.1f} s for the first"
        if skipped := sum("skipped_in_row" in line for line in self.lines):
            yield "skipped", f"{counted(skipped, 'step')} whose gradients were not usable"
        if "memory_gb" in last:
            yield "memory", f"{last['memory_gb']:.2f} GB at the most"
        if evaluations:
            before, after = evaluations[0], evaluations[-1]
            yield (
                "held out",
                f"perplexity {before['eval_perplexity']:.2f} at step {before['step']} -> "
                f"{after['eval_perplexity']:.2f} at step {after['step']}",
            )


def read_run(run_dir: Path) -> Run:
    """Read a run's folder.

    Raises:
        FormatError: There is no metrics file, no step in it yet, or it is not one of a run.
    """
    lines = read_metrics(run_dir / METRICS)
    if not any("loss" in line for line in lines):
        raise FormatError(f"{run_dir / METRICS} has no step yet; wait for the first one")
    for line in lines:
        for kind, others in WRITTEN_WITH.items():
            if kind in line and (missing := [key for key in others if key not in line]):
                raise FormatError(
                    f"{run_dir / METRICS}: step {line['step']} has {kind} and no {missing[0]}; give the "
                    "output folder of qwen3-train launch"
                )
    config = run_dir / RESOLVED_CONFIG
    return Run(
        name=run_dir.resolve().name,
        lines=lines,
        starts=_read_starts(run_dir / STARTS),
        configuration=config.read_text(encoding="utf-8") if config.is_file() else "no run.yaml",
    )


def _read_starts(path: Path) -> list[dict[str, object]]:
    """Return what can be read, for people alone: a line that is damaged is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            start = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(start, dict):
            found.append(start)
    return found
