"""What MindSpore's own backend plans for the fullest ranks of a run, from a dry run beside our own plan.

The dry run is a tool of the checkout, `tools/ascend_dry_run`, which builds stand-ins for CANN with a
compiler; an installed package has none.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.device.memory import gib
from qwen3_model.errors import ConfigError, Qwen3Error
from qwen3_train.plan.plan import Plan

TOOL, STEP = "tools/ascend_dry_run", "tools/lib/ascend_step.py"
NOTHING = {
    "train_dataset.data_loader.config.data_path": "none", "load_checkpoint": "none",
}  # fmt: skip
"""Inputs that a run must name and a dry run does not read."""


@dataclass(frozen=True, slots=True)
class DryRank:
    """One rank's dry run."""

    rank: int
    stage: int
    planned_bytes: int
    """Bytes that `plan` counts."""
    peak_bytes: int
    """Bytes that MindSpore's backend allocates."""


def find_tool() -> Path:
    """Return the tool of the checkout that this package is installed from, or that is the working directory.

    Raises:
        ConfigError: Neither is a checkout.
    """
    for start in (Path(__file__).resolve(), Path.cwd() / "_"):
        for folder in start.parents:
            if (folder / TOOL).is_file() and (folder / STEP).is_file():
                return folder / TOOL
    raise ConfigError(
        f"--dry-run needs {TOOL}, which comes with a checkout and not with the package; run it in a checkout"
    )


def fullest_ranks(plan: Plan) -> list[tuple[int, int, int]]:
    """Return rank, stage and planned bytes of the fullest device, and of those of first and last stage."""
    layout, stages = plan.settings.layout, plan.stages
    fullest = max(range(len(stages)), key=lambda stage: stages[stage].total)
    return [
        (stage * layout.dp * layout.tp, stage, stages[stage].total)
        for stage in sorted({fullest, 0, len(stages) - 1})
    ]


def dry_run(
    plan: Plan,
    config_path: Path,
    overrides: Sequence[tuple[str, str]],
    environment: Mapping[str, str],
    *,
    note: Callable[[str], None],
) -> list[DryRank]:
    """Run the tool for the fullest ranks of `plan`, one after the other.

    Args:
        plan: Plan of a run whose layout divides.
        config_path: Its YAML.
        overrides: Keys and values over it.
        environment: This process's environment.
        note: Takes a sentence before each, which can take minutes.

    Raises:
        ConfigError: There is no tool, or no layout to run.
        Qwen3Error: The tool failed, with its last words.
    """
    tool = find_tool()
    if not plan.stages:
        raise ConfigError("--dry-run needs a layout that divides")
    found = []
    pairs = {**NOTHING, **dict(overrides)}
    arguments = [word for key, value in pairs.items() for word in (f"--{key}", value)]
    for rank, stage, planned_bytes in fullest_ranks(plan):
        ranks = plan.settings.layout.num_ranks
        note(f"dry run of rank {rank} of {ranks} ...")
        with tempfile.TemporaryDirectory(prefix="qwen3-plan-") as folder:
            report = Path(folder) / "report.json"
            command = [
                str(tool), "--rank", str(rank), "--ranks", str(ranks), "--json", str(report), "--",
                str(tool.parents[1] / STEP), str(config_path.absolute()), *arguments,
            ]  # fmt: skip
            done = subprocess.run(
                command, env={**environment, "QWEN3_VENV": sys.prefix}, cwd=folder,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if not report.is_file():
                raise Qwen3Error(f"{tool}: {_last(done.stderr)}")
            values = json.loads(report.read_text(encoding="utf-8"))
        if values["exit_code"]:
            raise Qwen3Error(f"the dry run of rank {rank} failed: {'; '.join(values['problems'])}")
        peak_bytes = max(graph["peak_bytes"] or 0 for graph in values["graphs"])
        found.append(DryRank(rank, stage, planned_bytes, peak_bytes))
    return found


def dry_run_text(found: Sequence[DryRank]) -> str:
    """Return a line for each rank."""
    lines = ["", "Dry run (what MindSpore's backend plans; kernels' own workspaces and HCCL come on top)"]
    lines += [
        f"  rank {each.rank}, stage {each.stage}: {gib(each.peak_bytes)} GiB, {gib(each.planned_bytes)} above"
        for each in found
    ]
    return "\n".join(lines)


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
