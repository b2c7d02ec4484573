"""The figures that tools/demo computes itself, and what its last run left behind."""

import ast
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from qwen3_model.text.tokens import open_tokens

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/lib"))

import demo


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


@pytest.fixture(scope="module")
def made():
    """Return the folder of the newest whole demo of this checkout."""
    whole = [path.parent for path in demo.ROOT.glob("demo/*/text_generation_result.txt")]
    if not whole:
        pytest.skip("tools/demo has not run in this checkout")
    return max(whole, key=lambda folder: folder.stat().st_mtime)


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
