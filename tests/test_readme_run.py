"""The steps of docs/walkthrough.md, run as they stand there on the run of tools/demo, and what that left.

The demo's training is that of the walkthrough (test_demo.py compares the commands), and is done once: in the
newest demo of this checkout, or in a short one that is made here. Given again, its command has nothing to do.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from qwen3_model.text.tokens import open_tokens

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/lib"))

import demo

ROOT = demo.ROOT
SOURCES = ("packages/*/src/**/*", "configs/qwen3/demo.yaml", "tools/demo_data/**/*", "tools/lib/demo.py")
FEW_STEPS = 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of the newest whole demo of these sources, or of a short one."""
    files = [path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()]
    changed_s = max(path.stat().st_mtime for path in files if path.suffix != ".pyc")
    results = {path.stat().st_mtime: path for path in ROOT.glob("demo/*/text_generation_result.txt")}
    if results and max(results) > changed_s:
        return results[max(results)].parent
    folder = tmp_path_factory.mktemp("demo") / "1"
    command = [sys.executable, demo.__file__, "--steps", str(FEW_STEPS), "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_demos_tokens_are_those_of_its_tokenizer(made):
    tokens = open_tokens(made / "tokens/plays_text_document")
    lines = (demo.DATA / "shakespeare.jsonl").read_text(encoding="utf-8").splitlines()
    end = json.loads((made / "tokens/plays_text_document.json").read_text(encoding="utf-8"))["eod_id"]
    encode = Tokenizer.from_file(str(demo.DATA / "tokenizer/tokenizer.json")).encode
    assert len(tokens.sequence_lengths) == len(lines)
    for number in range(0, len(lines), max(1, len(lines) // 20)):
        ids = tokens.sequence(number, 0, int(tokens.sequence_lengths[number])).tolist()
        assert ids == [*encode(json.loads(lines[number])["text"]).ids, end]


def test_the_demos_model_has_the_weights_of_its_last_checkpoint(made):
    files = (made / "run/checkpoint/rank_0").glob("*.safetensors")
    trained = load_file(max(files, key=lambda path: int(path.stem.rpartition("_")[2])))
    model = load_file(made / "model/model.safetensors")
    assert model.keys() == {name for name in trained if name.startswith("model.")}
    for name, value in model.items():
        np.testing.assert_array_equal(value, trained[name], err_msg=name)


def test_the_demos_texts_go_on_from_its_prompts(made):
    (written,) = ast.literal_eval((made / "text_generation_result.txt").read_text(encoding="utf-8"))
    texts = written["text_generation_text"]
    assert len(texts) == len(demo.PROMPTS)
    for text, prompt in zip(texts, demo.PROMPTS, strict=True):
        assert text.startswith(prompt)
        assert len(text) > len(prompt) + 40


def _steps():
    text = (ROOT / "docs/walkthrough.md").read_text(encoding="utf-8")
    return [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "qwen3-" in block]


def test_the_steps_of_the_walkthrough_run_one_after_the_other(made, tmp_path):
    for name in ("tools", "configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(made / "run", tmp_path / "output")
    num_steps = len(demo.read_metrics(made / "run")[0])
    as_long = f" --train_dataset.data_loader.sizes '[{num_steps * demo.BATCH}, 0, 0]'"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    steps = _steps()
    assert len(steps) == 7
    said = []
    for step in steps:
        script = step.replace(
            "data/plays_text_document\nqwen3-train", f"data/plays_text_document{as_long}\nqwen3-train"
        )
        command = ["bash", "-euc", script]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
        if " launch --config configs/qwen3/demo.yaml" in step:
            # It finds the demo's data, byte for byte, in its own token files, and the run at its end.
            assert "finished" in done.stderr
            assert demo.read_metrics(tmp_path / "output") == demo.read_metrics(made / "run")
    assert f"at step {num_steps}" in said[2]
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
