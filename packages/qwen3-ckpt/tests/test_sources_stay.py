"""No command replaces what it reads, also with --force; every file of the sources is there afterwards."""

import hashlib
from pathlib import Path

import pytest
from ckpt_samples import Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def run_dir(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(tp=2))
    (tmp_path / "run" / "notes.txt").write_text("mine", encoding="utf-8")
    sources = ("--mindspore-ckpt-dir", made.checkpoint_dir, "--src-strategy-dirs", made.strategy_dir)
    result = run("merge", *sources, "--output-dir", tmp_path / "model", "--to", "hf")  # fmt: skip
    assert result.exit_code == 0, result.output
    (tmp_path / "above").mkdir()
    (tmp_path / "model").rename(tmp_path / "above" / "model")
    return tmp_path / "run"


@pytest.mark.parametrize("output", ["run", "run/checkpoint", "run/checkpoint/rank_1", "run/strategy"])
@pytest.mark.parametrize("command", ["merge", "reshard"])
def test_a_run_is_not_replaced_by_what_is_made_of_it(run_dir, output, command):
    before, target = contents(run_dir), run_dir.parent / output
    sources = ["--src-strategy-dirs", run_dir / "strategy"]
    if command == "merge":
        words = [
            "--mindspore-ckpt-dir",
            run_dir / "checkpoint",
            *sources,
            "--output-dir",
            target,
            "--to",
            "hf",
        ]
    else:
        words = [run_dir / "checkpoint", target, *sources]
    result = run(command, *words, "--force")
    assert result.exit_code == 1
    assert "which is read, and is never replaced" in result.output
    assert contents(run_dir) == before


@pytest.mark.parametrize("output", ["above", "above/model", "above/model/config.json"])
@pytest.mark.parametrize("source", ["above", "above/model", "above/model/model.safetensors"])
@pytest.mark.parametrize("command", ["convert", "reshard"])
def test_a_model_is_not_replaced_by_its_conversion(run_dir, output, source, command):
    folder = run_dir.parent
    if source == "above":
        result = run("convert", folder / "above" / "model", folder / "above" / "unified", "--to", "ours")
        assert result.exit_code == 0, result.output
        (folder / "above" / "model" / "model.safetensors").unlink()
        (folder / "above" / "unified" / "unified_safe").rename(folder / "above" / "model" / "unified_safe")
    before = contents(folder / "above")
    result = run(command, folder / source, folder / output, "--hf-dir", folder / "above" / "model", "--force")
    assert result.exit_code == 1
    assert "which is read, and is never replaced" in result.output
    assert contents(folder / "above") == before
