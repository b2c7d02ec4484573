"""Faults where a checkpoint goes to the disk (`fault_site`), and what a run has written since."""

from pathlib import Path

from qwen3_train.reports.run_log import read_metrics

FAULT_SITE = Path(__file__).parent / "fault_site"
LONGEST_S = 300


def curve_of(run_dir):
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in lines]


def fault_of(folder, kind, rank, step):
    """Return a fault of a rank when it writes the checkpoint of a step."""
    name = f"qwen3_rank_{rank}-1_{step}.safetensors"
    return {"file": name, "kind": kind, "marker": str(folder / f"{kind}_{rank}_{step}")}
