"""Curves over steps as SVG: round ticks, a legend, and the marks that page.js moves under the pointer."""

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 620, 230, 66, 12, 30, 12
MAX_POINTS = 600
"""Most points of a curve; longer curves are averaged."""
SMOOTHED_FROM = 100
"""Points from which on a curve also has a running mean, which stands out."""
COLOURS = 6
"""Colours of page.css; further runs begin with the first again."""
Point = tuple[int, float]
ToPixels = Callable[[tuple[float, float]], tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A curve of one run."""

    name: str
    """Text of the legend."""
    colour: int
    """Number of the run's colour, from 0."""
    points: Sequence[Point]
    """Steps, rising, and values."""
    is_held_out: bool = False
    """Whether it is drawn with dots, since it has few points."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Range of an axis, and its ticks, round numbers within."""

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]


def round_axis(low: float, high: float, most: int) -> Axis:
    """Return an axis that has `low` to `high`, with ticks that are 1, 2 or 5 times a power of 10 apart.

    It has at most `most` + 2 ticks, and ends at one, so that no curve touches a label.
    """
    if high <= low:
        spread = abs(low) * 0.05 or 1.0
        low, high = low - spread, high + spread
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    largest = max(map(abs, ticks))
    is_scientific = largest < 1e-2 or largest >= 1e6
    labels = tuple(_label(tick, step, is_scientific=is_scientific) for tick in ticks)
    return Axis(ticks[0], ticks[-1], ticks, labels)


def _label(value: float, step: float, *, is_scientific: bool) -> str:
    """Return a tick with as many digits as tell it from its neighbours."""
    if is_scientific and not value:
        return "0"
    if is_scientific:
        digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9))
        mantissa, exponent = f"{value:.{digits}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def draw(series: Sequence[Series]) -> str:
    """Return a legend and an SVG of all curves on common axes, with their values for page.js."""
    kept = []
    for each in series:
        points = _thin([point for point in each.points if math.isfinite(point[1])])
        if points:
            kept.append((each, points))
    if not kept:
        return "<p>no finite value</p>"
    every = [point for _, points in kept for point in points]
    first, last = min(step for step, _ in every), max(step for step, _ in every)
    across = round_axis(first, max(last, first + 1), 6)
    along = round_axis(min(value for _, value in every), max(value for _, value in every), 5)
    # Steps before the first and after the last are no part of the run.
    across = Axis(first, max(last, first + 1), across.ticks, across.labels)

    def to_pixels(point: tuple[float, float]) -> tuple[float, float]:
        x = LEFT + (point[0] - across.low) / (across.high - across.low) * (WIDTH - LEFT - RIGHT)
        y = TOP + (along.high - point[1]) / (along.high - along.low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', *_grid(across, along, to_pixels)]
    drawn = []
    for each, points in kept:
        colour = f"c{each.colour % COLOURS}"
        means = _running_mean(points)
        if each.is_held_out:
            parts.append(_polyline(f"held {colour}", points, to_pixels))
            parts += [
                f'<circle class="held {colour}" cx="{x}" cy="{y}" r="2.6"/>'
                for x, y in map(to_pixels, points)
            ]
        else:
            parts.append(_polyline(f"{'raw ' if means else ''}line {colour}", points, to_pixels))
            if means:
                parts.append(_polyline(f"line {colour}", means, to_pixels))
        drawn.append(
            {"name": each.name, "colour": each.colour % COLOURS,
             "points": [[step, value, *to_pixels((step, value))] for step, value in points]}
        )  # fmt: skip
    parts.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts += [f'<circle class="mark c{each["colour"]}" r="3.5"/>' for each in drawn]
    data = html.escape(json.dumps(drawn), quote=True)
    return f'{_legend(kept)}<div class="chart" data-series="{data}">{"".join(parts)}</svg></div>'


def _grid(across: Axis, along: Axis, to_pixels: ToPixels) -> list[str]:
    parts = []
    for tick, label in zip(along.ticks, along.labels, strict=True):
        _, y = to_pixels((across.low, tick))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{label}</text>')
    for tick, label in zip(across.ticks, across.labels, strict=True):
        if across.low <= tick <= across.high:
            x, _ = to_pixels((tick, along.low))
            parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">step</text>')
    return parts


def _legend(kept: Sequence[tuple[Series, Sequence[Point]]]) -> str:
    entries = (
        f'<li class="c{each.colour % COLOURS}{" held" if each.is_held_out else ""}">'
        f"{html.escape(each.name)}</li>"
        for each, _ in kept
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _polyline(kind: str, points: Sequence[Point], to_pixels: ToPixels) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{x},{y}" for x, y in map(to_pixels, points))}"/>'


def _running_mean(points: Sequence[Point]) -> list[Point]:
    """Average each point with its neighbours, a fiftieth of all; empty where there are few."""
    if len(points) < SMOOTHED_FROM:
        return []
    half = len(points) // 100
    means = []
    for at, (step, _) in enumerate(points):
        # As many on both sides, so that a slope stays one up to the ends.
        reach = min(half, at, len(points) - 1 - at)
        window = points[at - reach : at + reach + 1]
        means.append((step, sum(value for _, value in window) / len(window)))
    return means


def _thin(points: list[Point]) -> list[Point]:
    """Average neighbours until at most `MAX_POINTS` are left; the last step stays."""
    if len(points) <= MAX_POINTS:
        return points
    bounds = [round(number * len(points) / MAX_POINTS) for number in range(MAX_POINTS + 1)]
    return [
        (points[end - 1][0], sum(value for _, value in points[begin:end]) / (end - begin))
        for begin, end in pairwise(bounds)
    ]
