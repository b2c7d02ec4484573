"""Record what MindSpore plans for the settings that `qwen3-train plan` and `qwen3-infer plan` are held to.

A recorded file names the settings: of training a YAML of configs/qwen3, changes to it, and the rank; of
generation a size, what is asked of it, and the rank. Recording takes each of them through a dry run and
writes what came out beside it.
"""

import fcntl
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, TypeVar

from ascend_dry_run import dry_run, dry_run_environment
from ascend_inputs import ROOT, Inputs

TRAINING = ROOT / "packages/qwen3-train/tests/recorded_memory.json"
GENERATION = ROOT / "packages/qwen3-infer/tests/recorded_memory.json"
LOCK = Path(tempfile.gettempdir()) / "qwen3-recorded-memory.lock"
STEP = Path(__file__).with_name("ascend_step.py")
GIVEN = {
    "pretrain": ("--train_dataset.data_loader.config.data_path", "none"),
    "finetune": ("--load_checkpoint", "none"),
    "lora": ("--load_checkpoint", "none"),
}
"""What each kind of YAML must be given to be read; nothing is read there."""


class TrainingRow(TypedDict):
    """What is recorded of a rank that trains."""

    name: str
    config: str
    changes: list[str]
    rank: int
    ranks: int


class GenerationRow(TypedDict):
    """What is recorded of a rank that generates."""

    name: str
    size: str
    layers: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    rank: int
    ranks: int


Row = TypeVar("Row", TrainingRow, GenerationRow)


def record(part: str) -> int:
    """Record all settings whose name has `part`; return the exit code."""
    failed = _record(TRAINING, part, measure_step) + _record(GENERATION, part, measure_generation)
    return 1 if failed else 0


def _record(path: Path, part: str, measure: Callable[[Row], int | str]) -> int:
    """Record those of one file; return how many failed."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    failed = 0
    for row in recorded["settings"]:
        if part not in row["name"]:
            continue
        started_s = time.monotonic()
        peak_bytes = measure(row)
        if isinstance(peak_bytes, str):
            print(f"{row['name']} failed: {peak_bytes}", file=sys.stderr)
            failed += 1
            continue
        seconds = time.monotonic() - started_s
        print(f"{row['name']}: {peak_bytes / 2**30:.3f} GiB, {seconds:.0f} s", flush=True)
        _write(path, row["name"], peak_bytes)
    return failed


def measure_step(row: TrainingRow) -> int | str:
    """Return the peak of two steps of training in bytes, or why there is none."""
    kind = row["config"].partition("_")[0]
    command = [
        sys.executable, "-s", str(STEP), str(ROOT / f"configs/qwen3/{row['config']}.yaml"), *GIVEN[kind],
        *row["changes"],
    ]  # fmt: skip
    environment = dry_run_environment(row["rank"], row["ranks"]) | {"GLOG_v": "3"}
    with tempfile.TemporaryDirectory(prefix="qwen3-record-") as folder:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return _reason(done.stderr)
    return int(json.loads(lines[-1])["peak_bytes"])


def measure_generation(row: GenerationRow) -> int | str:
    """Return the peak of reading the longest prompt and of decoding in bytes, or why there is none."""
    from qwen3_model.config import SIZES
    from qwen3_model.text.tokenizer import Qwen3Tokenizer

    with tempfile.TemporaryDirectory(prefix="qwen3-record-") as name:
        folder = Path(name)
        model = Inputs(folder).zeros("model", replace(SIZES[row["size"]], num_layers=row["layers"]))
        prompt = "one" + " one" * (row["prompt_tokens"] - 1)
        assert len(Qwen3Tokenizer.from_dir(model).encode(prompt)) == row["prompt_tokens"]
        (folder / "prompts.txt").write_text((prompt + "\n") * row["requests"], encoding="utf-8")
        command = [
            "qwen3-infer", "generate", "--config", str(ROOT / "configs/qwen3/predict_qwen3.yaml"),
            "--pretrained-model-dir", str(model), "--predict-data", str(folder / "prompts.txt"),
            "--predict-batch-size", str(row["requests"]), "--max-new-tokens", str(row["new_tokens"]),
            "--save-file", str(folder / "answers.txt"),
        ]  # fmt: skip
        if row["ranks"] > 1:
            command += ["--use_parallel", "True", "--parallel_config.model_parallel", str(row["ranks"])]
        report = dry_run(command, rank=row["rank"], ranks=row["ranks"], cwd=folder)
    if report.problems:
        return "; ".join(report.problems)
    return max(graph.peak_bytes or 0 for graph in report.graphs)


def _reason(errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.strip() and "run_check" not in line]
    return lines[-1] if lines else "no message"


def _write(path: Path, name: str, peak_bytes: int) -> None:
    """Put a setting's memory into the file, which others may be recording, too."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recorded = json.loads(path.read_text(encoding="utf-8"))
        row = next(row for row in recorded["settings"] if row["name"] == name)
        row |= {"peak_bytes": peak_bytes, "mindspore": importlib.metadata.version("mindspore")}
        written = path.with_suffix(".json.tmp")
        written.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
        written.replace(path)
