"""The figures that tools/demo computes itself, and its commands; test_readme_run.py looks at what it left."""

import math
import re
import shlex
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/lib"))

import demo

ROOT = demo.ROOT


def _write_tokens(prefix, sequences):
    """Write Megatron's .bin and .idx, version 1, of int32 ids."""
    lengths = np.array([len(ids) for ids in sequences], np.int32)
    pointers = np.concatenate([[0], np.cumsum(lengths[:-1]) * 4]).astype(np.int64)
    count = len(sequences)
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, count, count + 1)
    indices = np.arange(count + 1, dtype=np.int64)
    prefix.with_suffix(".idx").write_bytes(
        header + lengths.tobytes() + pointers.tobytes() + indices.tobytes()
    )
    prefix.with_suffix(".bin").write_bytes(np.concatenate(sequences).astype(np.int32).tobytes())


def test_unigram_entropy_is_that_of_the_counts_over_all_documents(tmp_path):
    _write_tokens(tmp_path / "x", [[7, 7, 3], [3000, 7, 7, 3, 1]])
    shares = [4 / 8, 2 / 8, 1 / 8, 1 / 8]
    by_hand = -sum(share * math.log(share) for share in shares)
    assert demo.unigram_entropy(tmp_path / "x") == pytest.approx(by_hand, rel=1e-12)


def test_each_demo_gets_the_next_number(tmp_path):
    assert demo._next_folder(tmp_path / "demo").name == "1"
    for name in ("1", "9", "10", "notes"):
        (tmp_path / "demo" / name).mkdir(parents=True)
    assert demo._next_folder(tmp_path / "demo").name == "11"


def _options(words):
    """Return the program and command, and the rest as pairs of an option and its value, or alone."""
    rest, found = list(map(str, words[2:])), set()
    while rest:
        word = rest.pop(0)
        has_value = word.startswith("--") and rest and not rest[0].startswith("--")
        found.add((word, rest.pop(0)) if has_value else (word,))
    return tuple(words[:2]), found


def test_the_demos_commands_are_those_of_the_walkthrough(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(demo, "_step", lambda _title, *words: commands.append(words))
    prefix = demo._make_tokens(tmp_path)
    run_dir = demo._train(tmp_path, prefix, steps=300)
    model_dir = demo._make_model(tmp_path, run_dir)
    demo._step("", "qwen3-train", "report", run_dir)
    names = {
        prefix: "data/plays_text_document", tmp_path / "tokens/plays": "data/plays", run_dir: "output",
        run_dir / "checkpoint": "output/checkpoint", run_dir / "strategy": "output/strategy",
        tmp_path / "merged": "merged", model_dir: "model",
    }  # fmt: skip
    named = [[str(names.get(word, word)).removeprefix(f"{ROOT}/") for word in words] for words in commands]
    text = (ROOT / "docs/walkthrough.md").read_text(encoding="utf-8").replace("\\\n", " ")
    shown = dict(_options(shlex.split(line)) for line in re.findall(r"^qwen3-.*", text, re.MULTILINE)[:8])
    of_the_demo_alone = {("--workers", "2"), ("--train_dataset.data_loader.sizes", "[2400, 0, 0]")}
    assert len(named) == 7
    for command, options in map(_options, named):
        assert options - of_the_demo_alone == shown[command], command
