"""Everything that `generate` is given and cannot use is one sentence, before MindSpore is imported."""

import json
import shutil
import subprocess
import sys

import pytest
from weight_samples import whole_weights, write_run

from qwen3_model.ranks.layout import Layout

# All cases in one process: each command as it would end by itself.
RUN_ALL = """
import json, sys
from click.testing import CliRunner
from qwen3_infer.cli import main

results = {}
for name, arguments in json.load(sys.stdin).items():
    result = CliRunner().invoke(main, ["generate", *arguments])
    results[name] = [result.exit_code, result.stderr, "mindspore" in sys.modules]
print(json.dumps(results))
"""
CASES = {
    "empty prompt": (2, "--input is empty; give a text, a .txt file or a .jsonl file"),
    "blank line": (1, "prompts.txt, line 2 is blank; every line is a prompt, so remove it"),
    "invalid UTF-8": (1, "latin.txt, line 1: byte 4 (0xe9) is no UTF-8; save the file as UTF-8"),
    "over-long prompt": (1, "exceeds the context of 256; shorten it or pass --truncate to keep its last"),
    "unknown sampling parameter": (2, "unknown key top_kk"),
    "sampling out of range": (1, "top_p=1.5"),
    "tokenizer of another model": (1, "they are of different models"),
    "config of another model": (1, "model.layers.2.input_layernorm.weight is missing, of shape (16,)"),
    "no tokenizer": (1, "tokenizer.json"),
    "checkpoint of another model": (1, "model.embed_tokens.weight in qwen3_rank_0-1_2.safetensors has shape"),
    "checkpoint without a rank": (1, "the slice of rank_1 is missing"),
    "no checkpoint": (1, "nowhere does not exist; give a run, a checkpoint or a folder with weights"),
    "tensor parallel": (1, "num_attention_heads=2 does not divide by parallel_config.model_parallel=3"),
    "adapter of another base": (1, "the adapter is for another base: model.embed_tokens is (4096, 16)"),
    "no adapter": (1, "holds no adapter"),
    "existing result": (1, "mine.txt already exists; choose another output or pass --force to replace it"),
    "existing records": (1, "mine.jsonl already exists; choose another output or pass --force to replace it"),
    "file in the way": (1, "since mine.txt is a file; choose another output"),
    "no place for records": (2, "--output /proc/nope/x.jsonl cannot be written: No such file or directory;"),
    "numbers as prompts": (1, "predict_data: entry 2 is None, which is no text; put a prompt or a file's"),
    "no prompt": (2, "there is no prompt; give --input a text, a .txt file or a .jsonl file"),
    "cache beyond all addresses": (1, "out of memory; use a smaller batch or sequence, or more memory"),
    "folder for a result": (2, "folder is a folder; results are written to a file"),
}


@pytest.fixture
def arguments(make_demo_folder, tmp_path, request):
    (tmp_path / "prompts.txt").write_bytes(b"one\n\ntwo\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name in ("mine.txt", "mine.jsonl"):
        (tmp_path / name).write_text("mine", "utf-8")
    (tmp_path / "numbers.yaml").write_text("predict_data: ['1', null]", "utf-8")
    (tmp_path / "folder").mkdir()
    folder = make_demo_folder()
    deeper = shutil.copytree(folder, tmp_path / "deeper")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (deeper / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}), "utf-8")
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    other_run = write_run(tmp_path / "run", whole_weights(), Layout(tp=2))
    half_run = shutil.copytree(other_run, tmp_path / "half")
    shutil.rmtree(half_run / "checkpoint/rank_1")
    adapter = request.path.parent / "golden/adapter"

    def of(*extra, model=folder, data=("hello",)):
        prompts = [word for each in data for word in ("--predict-data", each)]
        return [str(word) for word in ("--pretrained-model-dir", model, *prompts, *extra)]

    return {
        "empty prompt": of(data=[" "]),
        "blank line": of(data=[tmp_path / "prompts.txt"]),
        "invalid UTF-8": of(data=[tmp_path / "latin.txt"]),
        "over-long prompt": of(data=["word " * 400]),
        "unknown sampling parameter": of("--top-kk", "5"),
        "sampling out of range": of("--top-p", "1.5"),
        "tokenizer of another model": of(model=make_demo_folder("small", vocab_size=512)),
        "config of another model": of(model=deeper),
        "no tokenizer": of(model=bare),
        "checkpoint of another model": of("--load-checkpoint", other_run),
        "checkpoint without a rank": of("--load-checkpoint", half_run),
        "no checkpoint": of("--load-checkpoint", tmp_path / "nowhere"),
        "tensor parallel": of("--worker-num", "3"),
        "adapter of another base": of("--adapter", adapter),
        "no adapter": of("--adapter", other_run),
        "existing result": of("--save-file", tmp_path / "mine.txt"),
        "existing records": of("--output", tmp_path / "mine.jsonl"),
        "file in the way": of("--save-file", "mine.txt/x.txt"),
        "no place for records": of("--save-file", "new.txt", "--output", "/proc/nope/x.jsonl"),
        "numbers as prompts": of("--config", tmp_path / "numbers.yaml", data=[]),
        "no prompt": of(data=[]),
        "cache beyond all addresses": of("--save-file", "new.txt", "--max-tokens-in-cache", 10**30),
        "folder for a result": of("--save-file", tmp_path / "folder"),
    }


def test_each_is_one_sentence(arguments, tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(arguments), capture_output=True, text=True,
        check=True, cwd=tmp_path,
    )  # fmt: skip
    results = json.loads(found.stdout)
    assert results.keys() == CASES.keys()
    wrong = {}
    for name, (code, sentence) in CASES.items():
        exit_code, said, has_mindspore = results[name]
        errors = [line for line in said.splitlines() if line.startswith("Error: ")]
        if (exit_code, has_mindspore, len(errors)) != (code, False, 1) or sentence not in errors[0]:
            wrong[name] = results[name]
    assert not wrong
    assert not (tmp_path / "text_generation_result.txt").exists()
    assert not list(tmp_path.glob("*.tmp"))
    assert not (tmp_path / "new.txt").exists()
