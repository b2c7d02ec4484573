"""A source that is replaced, overwritten or cut short at any moment: no exit code 0 with a wrong byte."""

import json
import os
import random
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from ckpt_samples import TINY, Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan, write_safetensors
from qwen3_model.checkpoints.source_file import SourceFile

RUN_FLAGS = (
    "--mindspore-ckpt-dir",
    "{0}/checkpoint",
    "--src-strategy-dirs",
    "{0}/strategy",
    "--output-dir",
    "{1}",
)
COMMANDS = {
    "convert": ("hf", ("convert", "{0}", "{1}", "--max-shard-size", "20KB")),
    "convert --dtype": ("hf", ("convert", "{0}", "{1}", "--dtype", "bf16")),
    "convert --to mindformers": ("hf", ("convert", "{0}", "{1}", "--to", "mindformers")),
    "merge": ("run", ("merge", *RUN_FLAGS)),
    "merge --to hf": ("run", ("merge", *RUN_FLAGS, "--to", "hf")),
    "average": ("hf", ("average", "{0}", "{0}", "{1}")),
    "lora fuse": ("both", ("lora", "fuse", "{0}", "{0}/peft", "{1}")),
    "lora export": ("both", ("lora", "export", "{0}/peft", "{1}", "--hf-dir", "{0}")),
    "reshard": ("run", ("reshard", "{0}", "{1}", "--model-parallel", "4", "--pipeline-stage", "2")),
}
MOMENTS_TRIED = 6
Q = "model.layers.0.self_attn.q_proj"


def run(words, source: Path, output: Path):
    return CliRunner().invoke(main, [word.format(source, output) for word in words])


def make(kind: str, folder: Path, seed: int) -> Path:
    """Make a source; those of two seeds have the same files and other numbers."""
    if kind == "run":
        made = make_checkpoint(folder, Spec(tp=2, pp=2, dp=2))
        if seed:
            for path in made.checkpoint_dir.rglob("*.safetensors"):
                data = bytearray(path.read_bytes())
                data[-600:] = bytes(byte ^ 1 for byte in data[-600:])
                path.write_bytes(data)
        return folder

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY.to_hf()), encoding="utf-8")
    tensors = [(TensorPlan(n, "F32", a.shape), [a.astype(np.float32)]) for n, a in init_weights(TINY, seed)]
    write_hf_weights(folder, tensors, 10_000)
    if kind == "both":
        (folder / "peft").mkdir()
        told = {"lora_alpha": 4 + seed, "r": 2}
        (folder / "peft" / "adapter_config.json").write_text(json.dumps(told), encoding="utf-8")
        out, inner = TINY.weight_shapes()[f"{Q}.weight"]
        halves = {"A": np.full((2, inner), 1 + seed), "B": np.full((out, 2), 1 - seed)}
        entries = [
            (TensorPlan(f"base_model.model.{Q}.lora_{half}.weight", "F32", v.shape), [v.astype(np.float32)])
            for half, v in halves.items()
        ]
        write_safetensors(folder / "peft" / "adapter_model.safetensors", entries, {})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def swap(source: Path, other: Path) -> None:
    source.rename(source.with_name("old"))
    other.rename(source)


def rewrite(source: Path, other: Path) -> None:
    for path in sorted(source.rglob("*.safetensors")):
        path.write_bytes((other / path.relative_to(source)).read_bytes())


def cut(source: Path, other: Path) -> None:
    for path in sorted(source.rglob("*.safetensors")):
        os.truncate(path, path.stat().st_size - 40)


@contextmanager
def at_moment(number: int, act):
    """Act before the file access with this number; return how many there were."""
    seen, original = [0], SourceFile.descriptor

    def descriptor(self):
        seen[0] += 1
        if seen[0] == number:
            act()
        return original(self)

    SourceFile.descriptor = descriptor
    try:
        yield seen
    finally:
        SourceFile.descriptor = original


@pytest.mark.parametrize("change", [swap, rewrite, cut], ids=lambda change: change.__name__)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_source_that_changes_at_any_moment(tmp_path, command, change):
    kind, words = COMMANDS[command]
    first, second = make(kind, tmp_path / "first", 0), make(kind, tmp_path / "second", 1)
    with at_moment(0, None) as seen:
        assert run(words, first, tmp_path / "right").exit_code == 0
    right = contents(tmp_path / "right")
    rng, refused = random.Random(f"{command} {change.__name__}"), 0
    for number in [1, seen[0], *rng.sample(range(2, seen[0]), min(MOMENTS_TRIED, seen[0] - 2))]:
        place = tmp_path / str(number)
        place.mkdir()
        shutil.copytree(first, place / "source")
        shutil.copytree(second, place / "other")
        with at_moment(number, lambda place=place: change(place / "source", place / "other")):
            result = run(words, place / "source", place / "out")
        if result.exit_code == 0:
            assert contents(place / "out") == right
        else:
            refused += 1
            assert result.exit_code == 1, result.exception
            assert isinstance(result.exception, SystemExit), result.exception
            assert "Error: " in result.output
            assert not (place / "out").exists() or not contents(place / "out")
        assert not [path for path in place.iterdir() if path.name.endswith(".tmp")]
    assert refused, "the change was seen"
