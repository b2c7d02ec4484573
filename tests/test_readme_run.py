"""The steps of docs/walkthrough.md, run as they stand there, with ten steps of training instead of 300."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHORTER = " --train_dataset.data_loader.sizes '[80, 0, 0]'"  # 10 steps of 8 samples instead of 300


def _steps():
    text = (ROOT / "docs/walkthrough.md").read_text(encoding="utf-8")
    return [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "qwen3-" in block]


@pytest.mark.slow
def test_the_steps_of_the_walkthrough_run_one_after_the_other(tmp_path):
    for name in ("tools", "configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    steps = _steps()
    assert len(steps) == 7
    said = []
    for step in steps:
        script = step.replace(
            "data/plays_text_document\nqwen3-train", f"data/plays_text_document{SHORTER}\nqwen3-train"
        )
        command = ["bash", "-euc", script]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    assert "at step 10" in _report(tmp_path, environment)
    assert (tmp_path / "output/loss.png").stat().st_size > 10_000
    assert "My lord, I will" in said[4]
    assert "exported 28 adapters of rank 8" in said[5]
    assert "fused 28 adapters" in said[5]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "output_lora/metrics.jsonl").open()]
    assert len(losses) == 15
    # Of several batches each: the losses of single ones differ by more than fifteen steps teach.
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.1
    assert "Name three colours." in (tmp_path / "answer.txt").read_text(encoding="utf-8")
    perplexity = float(said[6].split("perplexity ")[-1].split(",")[0])
    assert 10 < perplexity < 4096


def _report(directory, environment):
    command = ["qwen3-train", "report", "output"]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=True
    ).stdout
