"""A run as one HTML page that needs nothing besides itself: curves as SVG, numbers, configuration."""

import html
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from qwen3_train.run_folder import RESOLVED_CONFIG

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 620, 220, 62, 26, 12
MAX_POINTS = 600
"""Of a curve; longer ones are averaged."""
CURVES = (
    ("loss", "Training loss (nats per token)", "eval_loss"),
    ("lr", "Learning rate", None),
    ("grad_norm", "Gradient norm, before clipping", None),
    ("tokens_per_s", "Tokens per second", None),
    ("memory_gb", "Peak memory (GB)", None),
)
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1320px;margin:2rem auto;padding:0 1rem;color:#222}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:1rem}
figure{margin:0;border:1px solid #ccc;border-radius:6px;padding:.6rem}
figcaption{font-weight:600}svg{width:100%;height:auto}pre{overflow:auto;white-space:pre-wrap}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.15rem .9rem .15rem 0;text-align:left}
.grid{stroke:#ddd}.line{fill:none;stroke:#1667b7;stroke-width:1.6}.dots{fill:none;stroke:#c1440e;stroke-width:1.6}
text{font-size:12px;fill:#555}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16181c}figure{border-color:#444}
.grid{stroke:#333}.line{stroke:#6db3f2}.dots{stroke:#f2a06d}text{fill:#aaa}}
"""


def report_page(run_dir: Path, lines: Sequence[dict[str, Any]], summary: Sequence[str]) -> str:
    """Return the page.

    Args:
        run_dir: Folder of the run, for its configuration.
        lines: Objects of the metrics file.
        summary: Lines of a name and what it is, two blanks or more between them.
    """
    figures = []
    for key, title, other in CURVES:
        points = [(line["step"], line[key]) for line in lines if key in line]
        others = [(line["step"], line[other]) for line in lines if other and other in line]
        if points:
            shown = f"{title}; held out in the other colour" if others else title
            figures.append(
                f"<figure><figcaption>{html.escape(shown)}</figcaption>{draw(points, others)}</figure>"
            )
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(rest.strip())}</td></tr>"
        for name, _, rest in (line.partition("  ") for line in summary)
    )
    config = run_dir / RESOLVED_CONFIG
    told = html.escape(config.read_text(encoding="utf-8")) if config.is_file() else "no run.yaml"
    name = html.escape(run_dir.resolve().name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style></head><body><h1>{name}</h1><table>{rows}</table>"
        f"<main>{''.join(figures)}</main><h2>Configuration</h2><pre>{told}</pre></body></html>\n"
    )


def draw(points: Sequence[tuple[int, float]], others: Sequence[tuple[int, float]]) -> str:
    """Return an SVG of a curve and perhaps a second one, on common axes."""
    points, others = _thin(_finite(points)), _finite(others)
    if not points:
        return "<p>no finite value</p>"
    values = [value for _, value in (*points, *others)]
    low, high = min(values), max(values)
    if high == low:
        low, high = low - abs(low or 1) * 0.05, high + abs(high or 1) * 0.05
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def place(point: tuple[float, float]) -> str:
        x = LEFT + (point[0] - first) / (last - first) * (WIDTH - LEFT - 8)
        y = TOP + (high - point[1]) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = TOP + share * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="4" y="{y + 4:.1f}">{high - share * (high - low):.4g}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">step {first}</text>')
    parts.append(f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">{points[-1][0]}</text>')
    for kind, curve in (("line", points), ("dots", others)):
        if curve:
            parts.append(f'<polyline class="{kind}" points="{" ".join(map(place, curve))}"/>')
    return "".join(parts) + "</svg>"


def _finite(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [point for point in points if math.isfinite(point[1])]


def _thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Average neighbours until at most `MAX_POINTS` are left; the last step stays."""
    if len(points) <= MAX_POINTS:
        return points
    bounds = [round(number * len(points) / MAX_POINTS) for number in range(MAX_POINTS + 1)]
    return [
        (points[end - 1][0], sum(value for _, value in points[begin:end]) / (end - begin))
        for begin, end in pairwise(bounds)
    ]
