"""Runs as one HTML page that needs nothing besides itself: curves beside each other, facts, configuration."""

import html
from collections.abc import Sequence
from importlib.resources import files

from qwen3_train.reports.chart import Series, draw
from qwen3_train.reports.run_facts import Run

CURVES = (
    ("loss", "Loss (nats per token)", "eval_loss"),
    ("lr", "Learning rate", None),
    ("grad_norm", "Gradient norm, before clipping", None),
    ("tokens_per_s", "Tokens per second", None),
    ("mfu", "Model FLOPs utilisation", None),
    ("memory_gb", "Peak memory (GB)", None),
)
SPEEDS = ("tokens_per_s", "mfu")
"""Left out of steps that compile, beside which all others would look alike."""


def report_page(runs: Sequence[Run]) -> str:
    """Return the page of one run, or of several beside each other."""
    figures = []
    for key, title, held_out in CURVES:
        series = [
            each
            for number, run in enumerate(runs)
            for each in _series(run, number, key, held_out, is_alone=len(runs) == 1)
        ]
        if any(each.points for each in series):
            figures.append(f"<figure><figcaption>{html.escape(title)}</figcaption>{draw(series)}</figure>")
    title = html.escape(", ".join(run.name for run in runs))
    configurations = "".join(
        f"<h2>Configuration of {html.escape(run.name)}</h2><pre>{html.escape(run.configuration)}</pre>"
        for run in runs
    )
    package = files("qwen3_train.reports")
    style, script = (package.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body><h1>{title}</h1>{_table(runs)}"
        f"<main>{''.join(figures)}</main>{configurations}<script>{script}</script></body></html>\n"
    )


def _series(run: Run, number: int, key: str, held_out: str | None, *, is_alone: bool) -> list[Series]:
    compiled = run.compiling_steps if key in SPEEDS else frozenset()
    lines = [line for line in run.lines if key in line]
    points = [(int(line["step"]), line[key]) for line in lines if line["step"] not in compiled]
    points = points or [(int(line["step"]), line[key]) for line in lines]
    # Where there is a single run, the held-out curve has a colour of its own.
    name = "training" if is_alone and held_out else run.name
    found = [Series(name=name, colour=number, points=points)]
    if held_out and (
        others := [(int(line["step"]), line[held_out]) for line in run.lines if held_out in line]
    ):
        label, colour = ("held out", 1) if is_alone else (f"{run.name}, held out", number)
        found.append(Series(name=label, colour=colour, points=others, is_held_out=True))
    return found


def _table(runs: Sequence[Run]) -> str:
    """Return a row for each fact with a column for each run."""
    facts = [dict(run.facts()) for run in runs]
    names = list(dict.fromkeys(name for each in facts for name in each))
    head = "".join(f'<th class="c{number}">{html.escape(run.name)}</th>' for number, run in enumerate(runs))
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(f"<td>{html.escape(each.get(name, ''))}</td>" for each in facts)
        + "</tr>"
        for name in names
    )
    head = f"<tr><th></th>{head}</tr>" if len(runs) > 1 else ""
    many = " many" if len(runs) > 1 else ""
    return f'<div class="facts{many}"><table>{head}{rows}</table></div>'
