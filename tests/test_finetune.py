"""Fine-tuning as a whole: a tiny model learns twenty seed tasks by heart and answers them when asked.

Template, labels, loss, checkpoint, conversion and generation must all agree for that.
"""

import json
import os
import subprocess
import sys

import pytest
import yaml

from qwen3_model.text.tokenizer import Qwen3Tokenizer

NUM_EACH, LONGEST = 10, 56
HANGS_S = 900
MODEL = {
    "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
    "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip


def seed_tasks(folder, tokenizer):
    """Return alpaca records of short tasks with different questions, English and Chinese."""
    found = []
    for name in ("self_instruct_seed_tasks.jsonl", "belle_zh_seed_tasks.json"):
        tasks = map(json.loads, (folder / name).read_text(encoding="utf-8").splitlines())
        records = [
            {"instruction": t["instruction"], "input": i["input"], "output": i["output"]}
            for t in tasks
            for i in t["instances"][:1]
        ]
        short = [r for r in records if r["output"].strip() and _length(r, tokenizer) <= LONGEST]
        found += short[:NUM_EACH]
    return found


def _length(record, tokenizer):
    return len(tokenizer.encode("\n\n".join(record.values())))


def run(module, *arguments):
    words = [sys.executable, "-c", f"from {module}.cli import main; main()", *map(str, arguments)]
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=os.environ | threads, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_config(path, records, tokenizer_dir, out):
    path.with_name("tasks.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    loader = {
        "type": "HFDataLoader", "path": "json", "data_files": str(path.with_name("tasks.json")),
        "cache_dir": str(path.parent / "cache"),
        "handler": [
            {"type": "AlpacaInstructDataHandler", "seq_length": 256},
            {"type": "PackingHandler", "seq_length": 256, "pack_strategy": "pack"},
        ],
    }  # fmt: skip
    values = {
        "output_dir": str(out), "pretrained_model_dir": str(tokenizer_dir), "use_parallel": False,
        "runner_config": {"epochs": 100, "batch_size": 1, "gradient_accumulation_steps": 1},
        "optimizer": {"type": "AdamW", "weight_decay": 0.0},
        "lr_schedule": {"type": "CosineWithWarmUpLR", "learning_rate": 4e-3, "warmup_steps": 10},
        "train_dataset": {"data_loader": loader},
        "context": {"device_target": "CPU"},
        "model": {"model_config": MODEL},
        "callbacks": [{"type": "MFLossMonitor", "per_print_times": 50}],
        "runner_wrapper": {"use_clip_grad": True},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values), encoding="utf-8")


@pytest.mark.slow
def test_a_model_that_learnt_twenty_tasks_answers_them(tmp_path, demo_tokenizer_dir, sft_seed_dir):
    records = seed_tasks(sft_seed_dir, Qwen3Tokenizer.from_dir(demo_tokenizer_dir))
    assert len(records) == 2 * NUM_EACH
    out = tmp_path / "out"
    write_config(tmp_path / "run.yaml", records, demo_tokenizer_dir, out)
    run("qwen3_train", "launch", "--config", tmp_path / "run.yaml")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.02
    run(
        "qwen3_ckpt", "merge", "--mindspore-ckpt-dir", out / "checkpoint", "--src-strategy-dirs",
        out / "strategy", "--output-dir", tmp_path / "merged",
    )  # fmt: skip
    run("qwen3_ckpt", "convert", tmp_path / "merged", tmp_path / "model", "--hf-dir", out)
    prompts = tmp_path / "prompts.jsonl"
    with prompts.open("w", encoding="utf-8") as file:
        for record in records:
            question = "\n\n".join(part for part in (record["instruction"], record["input"]) if part)
            file.write(json.dumps({"prompt": question}, ensure_ascii=False) + "\n")
    run(
        "qwen3_infer", "generate", "--pretrained-model-dir", tmp_path / "model", "--predict-data", prompts,
        "--chat", "--no-thinking", "--predict-batch-size", 20, "--max-new-tokens", 100,
        "--output", tmp_path / "answers.jsonl", "--save-file", tmp_path / "answers.txt",
    )  # fmt: skip
    written = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["completion"] for line in written]
    assert answers == [record["output"].strip() for record in records]
