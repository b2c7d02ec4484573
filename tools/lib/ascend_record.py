"""Record what MindSpore plans for the settings that `qwen3-train plan` is held to.

The recorded file names the settings: a YAML of configs/qwen3, changes to it, and the rank. Recording takes
each of them through a dry run and writes what came out beside it.
"""

import fcntl
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ascend_stand_in import mindspore_folder, stand_in, stand_in_environment

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "packages/qwen3-train/tests/recorded_memory.json"
LOCK = Path(tempfile.gettempdir()) / "qwen3-recorded-memory.lock"
STEP = Path(__file__).with_name("ascend_step.py")
GIVEN = {
    "pretrain": ("--train_dataset.data_loader.config.data_path", "none"),
    "finetune": ("--load_checkpoint", "none"),
    "lora": ("--load_checkpoint", "none"),
}
"""What each kind of YAML must be given to be read; nothing is read there."""


def record(part: str) -> int:
    """Record all settings whose name has `part`; return the exit code."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    chosen = [row for row in recorded["settings"] if part in row["name"]]
    failed = 0
    for row in chosen:
        started_s = time.monotonic()
        memory = measure(row)
        seconds = time.monotonic() - started_s
        if memory is None:
            failed += 1
            continue
        print(f"{row['name']}: {memory['peak_bytes'] / 2**30:.3f} GiB, {seconds:.0f} s", flush=True)
        _write(row["name"], memory)
    return 1 if failed else 0


def measure(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the memory of one setting, or None where its dry run fails, which is said."""
    kind = row["config"].partition("_")[0]
    command = [
        sys.executable, "-s", STEP, ROOT / f"configs/qwen3/{row['config']}.yaml", *GIVEN[kind],
        *row["changes"],
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= stand_in_environment(stand_in(), mindspore_folder())
    environment |= {
        "MS_SIMULATION_LEVEL": "1", "RANK_ID": str(row["rank"]), "RANK_SIZE": str(row["ranks"]),
        "MS_DEV_RUNTIME_CONF": "switch_inline:False", "GLOG_v": "3",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="qwen3-record-") as folder:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        print(f"{row['name']} failed: {_reason(done.stderr)}", file=sys.stderr)
        return None
    return json.loads(lines[-1]) | {"mindspore": importlib.metadata.version("mindspore")}


def _reason(errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.strip() and "run_check" not in line]
    return lines[-1] if lines else "no message"


def _write(name: str, memory: dict[str, Any]) -> None:
    """Put a setting's memory into the file, which others may be recording, too."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
        row = next(row for row in recorded["settings"] if row["name"] == name)
        row |= {key: memory[key] for key in ("peak_bytes", "mindspore")}
        path = RECORDED.with_suffix(".json.tmp")
        path.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
        path.replace(RECORDED)
