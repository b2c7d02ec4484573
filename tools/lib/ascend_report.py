"""A dry run's report: kernels of each graph by kind, seconds, memory, and what is wrong with them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ascend_log import Kernel, read_kernels, read_peak

OPERATORS = Path(__file__).with_name("ascend_operators.tsv")
LISTED = ("internal", "aclnn", "aclop")
"""Kinds whose operators have to be in the list."""
KINDS = ("internal", "aclnn", "aclop", "hccl", "host", "view")
GIB = 1 << 30
ELSEWHERE = "(elsewhere)"
"""Stands for the graphs that processes which the command starts have compiled."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph that MindSpore compiled."""

    name: str
    """Class of its outermost cell."""
    seconds: float
    """Seconds of its compilation."""
    kernels: Mapping[str, Mapping[str, int]]
    """Number by kind and operator."""
    peak_bytes: int | None
    """While it ran for the first time; None where it did not."""
    error: str | None = None

    def count(self, kind: str) -> int:
        """Return the number of kernels of one kind."""
        return sum(self.kernels.get(kind, {}).values())


@dataclass(frozen=True, slots=True)
class Report:
    """What a dry run found."""

    facts: Mapping[str, object]
    """Command, rank, ranks, soc, versions, exit code, seconds."""
    graphs: Sequence[Graph]
    memory: Mapping[str, int]
    """Bytes of the whole run's peak, without and with fragments."""
    problems: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON has it."""
        graphs = [
            {
                "graph": graph.name,
                "seconds": round(graph.seconds, 3),
                "kernels": {kind: dict(found) for kind, found in graph.kernels.items()},
                "peak_bytes": graph.peak_bytes,
                "error": graph.error,
            }
            for graph in self.graphs
        ]
        return {**self.facts, **self.memory, "graphs": graphs, "problems": list(self.problems)}


@cache
def known_operators() -> dict[tuple[str, str], tuple[str, str]]:
    """Return (kind, operator) -> (function, where it is documented or why there is no other)."""
    rows = [line.split("\t") for line in OPERATORS.read_text(encoding="utf-8").splitlines()]
    return {(row[0], row[1]): (row[2], row[3]) for row in rows if not row[0].startswith("#")}


def known_functions() -> set[str]:
    """Return the functions of the list."""
    return {function for function, _ in known_operators().values()}


def make_report(facts: Mapping[str, object], graphs_path: Path, log_dir: Path) -> Report:
    """Read what the process of a dry run and MindSpore's log have left."""
    kernels = read_kernels(log_dir)
    lines = graphs_path.read_text(encoding="utf-8").splitlines() if graphs_path.exists() else []
    graphs = [
        Graph(
            name=entry["graph"].strip("_"),
            seconds=entry["ended_s"] - entry["started_s"],
            kernels=_counted(
                each for each in kernels if entry["started_s"] <= each.time_s <= entry["ended_s"]
            ),
            peak_bytes=entry.get("peak_bytes"),
            error=entry.get("error"),
        )
        for entry in map(json.loads, lines)
    ]
    spans = [(entry["started_s"], entry["ended_s"]) for entry in map(json.loads, lines)]
    rest = [each for each in kernels if not any(start <= each.time_s <= end for start, end in spans)]
    graphs.append(Graph(ELSEWHERE, 0.0, _counted(rest), None))
    # A graph of the host alone, as MindSpore makes them for single operators, says nothing of the device.
    graphs = [graph for graph in graphs if graph.kernels or graph.error]
    problems = list(_problems(graphs))
    if facts["exit_code"]:
        problems.insert(0, f"the command ended with exit code {facts['exit_code']}")
    return Report(facts, graphs, read_peak(log_dir), problems)


def _counted(kernels: Iterable[Kernel]) -> dict[str, dict[str, int]]:
    counts = Counter((kernel.kind, kernel.operator) for kernel in kernels)
    found: dict[str, dict[str, int]] = {}
    for (kind, operator), number in sorted(counts.items()):
        found.setdefault(kind, {})[operator] = number
    return found


def _problems(graphs: Iterable[Graph]) -> Iterable[str]:
    """Yield a sentence for each graph that failed and each kind with kernels that the list does not have."""
    unlisted: dict[str, set[str]] = {}
    for graph in graphs:
        if graph.error:
            yield f"{graph.name} does not compile: {graph.error}"
        for kind in LISTED:
            names = {name for name in graph.kernels.get(kind, {}) if (kind, name) not in known_operators()}
            unlisted.setdefault(kind, set()).update(names)
    for kind, names in unlisted.items():
        if names:
            yield f"{kind} kernels that {OPERATORS.name} does not have: {', '.join(sorted(names))}"


def text_of(report: Report) -> str:
    """Return the report as a table."""
    heads = ("graph", *KINDS, "seconds", "peak GiB")
    rows = [
        (
            graph.name, *(str(graph.count(kind) or "-") for kind in KINDS), f"{graph.seconds:.1f}",
            f"{graph.peak_bytes / GIB:.2f}" if graph.peak_bytes is not None else "-",
        )
        for graph in report.graphs
    ]  # fmt: skip
    widths = [max(len(row[index]) for row in (heads, *rows)) for index in range(len(heads))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (heads, *rows)
    ]
    others = {kind for graph in report.graphs for kind in graph.kernels} - set(KINDS)
    lines += [f"kernels of other kinds: {', '.join(sorted(others))}"] * bool(others)
    aclop = Counter[str]()
    for graph in report.graphs:
        aclop.update(graph.kernels.get("aclop", {}))
    if aclop:
        lines.append("aclop: " + ", ".join(f"{name} x {number}" for name, number in sorted(aclop.items())))
    if report.memory:
        peak, fragmented = (report.memory[key] / GIB for key in ("peak_bytes", "peak_with_fragments_bytes"))
        lines.append(f"peak of the run: {peak:.2f} GiB, {fragmented:.2f} GiB with fragments")
    return "\n".join([*lines, *(f"problem: {sentence}" for sentence in report.problems)])
