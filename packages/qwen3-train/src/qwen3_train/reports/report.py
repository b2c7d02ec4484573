"""Runs at a glance: summary and loss curve in the terminal, the curve as PNG, and the page."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from qwen3_model.command.files import write_atomically, write_text_atomically
from qwen3_train.reports.html import report_page
from qwen3_train.reports.run_facts import Run, read_run

HEIGHT = 12
"""Rows of the curve in the terminal."""


def write_report(run_dirs: Sequence[Path], width: int, output: Path | None = None) -> str:
    """Write the page of all runs, and of a single one `loss.png`; return summaries and curves.

    Args:
        run_dirs: Folders of runs.
        width: Columns of the curves.
        output: The page; when left out `report.html` of a single run, or `comparison.html` here.

    Raises:
        FormatError: A folder has no metrics file, or no step in it yet.
    """
    runs, is_alone = [read_run(run_dir) for run_dir in run_dirs], len(run_dirs) == 1
    lines = []
    for run_dir, run in zip(run_dirs, runs, strict=True):
        curve = draw_curve(
            [int(line["step"]) for line in run.steps], [line["loss"] for line in run.steps], width
        )
        summary = [f"{name:<11} {value}" for name, value in run.summary()]
        lines += [*([] if is_alone else [f"{run_dir}:"]), *summary, "", curve, ""]
    if is_alone:
        picture = run_dirs[0] / "loss.png"
        write_atomically(picture, partial(_draw_png, runs[0]))
        lines.append(f"picture: {picture}")
    page = output or (run_dirs[0] / "report.html" if is_alone else Path("comparison.html"))
    write_text_atomically(page, report_page(runs))
    return "\n".join([*lines, f"page:    {page}"])


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


def _draw_png(run: Run, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, evaluations = run.steps, run.evaluations
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
