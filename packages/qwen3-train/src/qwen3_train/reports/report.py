"""A finished or running run at a glance: a summary, a loss curve in the terminal, and the same as PNG."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from qwen3_model.errors import FormatError
from qwen3_model.files import write_atomically, write_text_atomically
from qwen3_model.progress import clock
from qwen3_train.reports.html import report_page
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.run_folder import METRICS

HEIGHT = 12
"""Rows of the curve in the terminal."""


def write_report(run_dir: Path, width: int) -> str:
    """Return the summary and curve of `run_dir`, and write its `loss.png` and `report.html`.

    Raises:
        FormatError: There is no metrics file, or no step in it yet.
    """
    lines = read_metrics(run_dir / METRICS)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    if not steps:
        raise FormatError(f"{run_dir / METRICS} has no step yet; wait for the first one")
    picture = run_dir / "loss.png"
    write_atomically(picture, lambda temporary: _draw_png(temporary, steps, evaluations))
    losses = [line["loss"] for line in steps]
    curve = draw_curve([line["step"] for line in steps], losses, width)
    page, summary = run_dir / "report.html", _summary(lines, steps, evaluations)
    write_text_atomically(page, report_page(run_dir, lines, summary))
    return "\n".join([*summary, "", curve, "", f"picture: {picture}", f"page:    {page}"])


def _summary(
    lines: Sequence[dict[str, Any]],
    steps: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
) -> list[str]:
    first, last = steps[0], steps[-1]
    total_s = sum(line["step_time_s"] for line in steps)
    # The first step compiles.
    speeds = sorted(line["tokens_per_s"] for line in steps[1:] or steps)
    text = [
        f"steps       {first['step']} to {last['step']}",
        f"loss        {first['loss']:.4f} -> {last['loss']:.4f}, lowest "
        f"{min(line['loss'] for line in steps):.4f}",
        f"speed       {speeds[len(speeds) // 2]:.0f} tokens/s (median)",
        f"time        {clock(total_s)} in steps, {steps[0]['step_time_s']:.1f} s for the first",
    ]
    if skipped := sum("skipped_in_row" in line for line in lines):
        text.append(f"skipped     {skipped} steps whose gradients were not usable")
    if "memory_gb" in last:
        text.append(f"memory      {last['memory_gb']:.2f} GB at the most")
    if evaluations:
        before, after = evaluations[0], evaluations[-1]
        text.append(
            f"held out    perplexity {before['eval_perplexity']:.2f} at step {before['step']} -> "
            f"{after['eval_perplexity']:.2f} at step {after['step']}"
        )
    return text


def draw_curve(steps: Sequence[int], values: Sequence[float], width: int) -> str:
    """Return `values` as rows of characters, averaged over the columns, with the axis at the left."""
    columns = _column_means(values, max(10, width - 10))
    finite = [value for value in columns if math.isfinite(value)]
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    rows = []
    for row in range(HEIGHT):
        top = high - span * row / (HEIGHT - 1)
        label = f"{top:8.3f} |" if row in (0, HEIGHT // 2, HEIGHT - 1) else " " * 9 + "|"
        marks = (
            "*" if math.isfinite(value) and round((high - value) / span * (HEIGHT - 1)) == row else " "
            for value in columns
        )
        rows.append((label + "".join(marks)).rstrip())
    rows.append(" " * 9 + "+" + "-" * len(columns))
    rows.append(" " * 10 + f"{steps[0]}".ljust(max(1, len(columns) - len(str(steps[-1])))) + f"{steps[-1]}")
    return "\n".join(rows)


def _column_means(values: Sequence[float], columns: int) -> list[float]:
    if len(values) <= columns:
        return list(values)
    bounds = [round(i * len(values) / columns) for i in range(columns + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]


def _draw_png(path: Path, steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    numbers = [line["step"] for line in steps]
    axes.plot(numbers, [line["loss"] for line in steps], linewidth=1.0, label="training loss")
    if evaluations:
        axes.plot(
            [line["step"] for line in evaluations], [line["eval_loss"] for line in evaluations],
            marker="o", linewidth=1.5, label="held-out loss",
        )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    rates = axes.twinx()
    rates.plot(numbers, [line["lr"] for line in steps], color="0.6", linewidth=0.8)
    rates.set_ylabel("learning rate", color="0.5")
    rates.set_ylim(bottom=0)
    canvas.print_figure(path, format="png")
