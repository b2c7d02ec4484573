"""kill -9 at any moment of a command that writes: the old output or the new one whole, no source changed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ckpt_samples import TINY, Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.safetensors_file import TensorPlan, write_safetensors

Q = "model.layers.0.self_attn.q_proj"
COMMANDS = {
    "merge": ("merge", "--mindspore-ckpt-dir", "run/checkpoint", "--output-dir", "out"),
    "merge --to hf": ("merge", "--mindspore-ckpt-dir", "run/checkpoint", "--output-dir", "out", "--to", "hf"),
    "convert": ("convert", "hf", "out", "--max-shard-size", "20KB", "--dtype", "bf16"),
    "reshard": ("reshard", "run", "out", "--model-parallel", "4"),
    "average": ("average", "run", "hf", "out"),
    "lora fuse": ("lora", "fuse", "hf", "peft", "out"),
    "lora export": ("lora", "export", "peft", "out"),
}
KILLS = 4
# Imports done and descriptors known, the child waits for one byte, so that a kill falls into the work.
CHILD = """
import sys
import qwen3_ckpt.cli
from qwen3_ckpt.operations import average, convert, lora, merge, reshard
print("ready", flush=True)
sys.stdin.read(1)
qwen3_ckpt.cli.main(sys.argv[1:])
"""


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def is_left_over(path: Path) -> bool:
    return any(part.startswith(".") and part.endswith(".tmp") for part in path.parts)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    make_checkpoint(folder / "run", Spec(tp=2, dp=2))
    assert CliRunner().invoke(main, ["convert", str(folder / "run"), str(folder / "hf")]).exit_code == 0
    (folder / "peft").mkdir()
    out, inner = TINY.weight_shapes()[f"{Q}.weight"]
    halves = {"A": np.ones((2, inner), np.float32), "B": np.ones((out, 2), np.float32)}
    entries = [
        (TensorPlan(f"base_model.model.{Q}.lora_{half}.weight", "F32", v.shape), [v])
        for half, v in halves.items()
    ]
    write_safetensors(folder / "peft" / "adapter_model.safetensors", entries, {})
    (folder / "peft" / "adapter_config.json").write_text(
        json.dumps({"lora_alpha": 4, "r": 2}), encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_leaves_the_old_output_or_the_new_one(sources, tmp_path, command):
    for name in ("run", "hf", "peft"):
        (tmp_path / name).symlink_to(sources / name)
    before, rng = digests(sources), random.Random(command)
    words, out = (*COMMANDS[command], "--force"), tmp_path / "out"

    def start() -> subprocess.Popen:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *words],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert child.stdout.readline() == b"ready\n"
        child.stdin.write(b"x")
        child.stdin.flush()
        return child

    began = time.monotonic()
    assert start().wait() == 0
    took, whole = time.monotonic() - began, digests(out)
    assert whole
    for number in range(KILLS):
        if number % 2:
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            out.rmdir()
        child = start()
        time.sleep(took * rng.random())
        child.send_signal(signal.SIGKILL)
        child.wait()
        # merge works beside its earlier outputs, in `out`, under a hidden name that the next run sweeps up.
        found = {name: digest for name, digest in digests(out).items() if not is_left_over(Path(name))}
        assert found in (({}, whole) if number % 2 else (whole,)), sorted(found.keys() ^ whole.keys())
        assert digests(sources) == before
    assert start().wait() == 0
    assert digests(out) == whole
    assert not [path for path in tmp_path.rglob("*") if is_left_over(path)], "leftovers are swept up"
