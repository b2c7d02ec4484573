"""The cached copy of a tokenizer says what the original says, and is never trusted when it is not whole."""

import hashlib

import numpy as np
import orjson
import pytest
from hard_texts import HAND_MADE, random_texts

from qwen3_data.compact_tokenizer import compact_json, read_compact
from qwen3_data.engines import FastokensEngine
from qwen3_data.tokenizer_facts import TokenizerFile
from qwen3_model.errors import ConfigError

EOD = "<|endoftext|>"


@pytest.fixture
def cached(qwen3_tokenizer_dir, cache_dir):
    """Return the file in the cache, made by a first look at the tokenizer."""
    TokenizerFile(qwen3_tokenizer_dir, cache_dir).facts(EOD)
    (path,) = (cache_dir / "tokenizers").iterdir()
    return path


def test_the_copy_says_what_the_original_says(qwen3_tokenizer_dir, cache_dir, cached):
    original = orjson.loads((qwen3_tokenizer_dir / "tokenizer.json").read_bytes())
    again = TokenizerFile(qwen3_tokenizer_dir, cache_dir)
    copy = orjson.loads(again.json)
    assert len(again.json) < 5e6
    copy["model"]["merges"] = [merge.split(" ") for merge in copy["model"]["merges"]]
    assert copy == original
    assert again.facts(EOD) == TokenizerFile(qwen3_tokenizer_dir).facts(EOD)


def test_the_copy_encodes_as_the_original(qwen3_tokenizer_dir, cache_dir, cached):
    pytest.importorskip("fastokens")
    texts = [*HAND_MADE, *random_texts(500, seed=11)]
    files = TokenizerFile(qwen3_tokenizer_dir), TokenizerFile(qwen3_tokenizer_dir, cache_dir)
    assert files[0].json != files[1].json
    (ids, offsets), (copied, copied_offsets) = (
        FastokensEngine(file, allow_special=False).encode(texts) for file in files
    )
    np.testing.assert_array_equal(copied, ids)
    np.testing.assert_array_equal(copied_offsets, offsets)


def test_a_token_outside_of_the_copy_is_still_found(qwen3_tokenizer_dir, cache_dir, cached):
    again = TokenizerFile(qwen3_tokenizer_dir, cache_dir)
    assert again.facts("the").eod_id == TokenizerFile(qwen3_tokenizer_dir).facts("the").eod_id > 0
    with pytest.raises(ConfigError, match="is no token of"):
        again.facts("no such token")


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: raw.replace(b"151643", b"151644"), lambda raw: b""]
)
def test_a_damaged_copy_is_not_used_and_is_made_anew(qwen3_tokenizer_dir, cache_dir, cached, damage):
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    file = TokenizerFile(qwen3_tokenizer_dir, cache_dir)
    assert file.json == (qwen3_tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8")
    file.facts(EOD)
    assert cached.read_bytes() == whole


def test_another_tokenizer_never_gets_the_copy(qwen3_tokenizer_dir, cache_dir, cached, tmp_path):
    raw = (qwen3_tokenizer_dir / "tokenizer.json").read_bytes() + b" "
    (tmp_path / "tokenizer.json").write_bytes(raw)
    assert read_compact(cache_dir, hashlib.sha256(raw).hexdigest()) is None
    assert TokenizerFile(tmp_path, cache_dir).json == raw.decode()


def test_a_cache_that_cannot_be_written_stops_nothing(qwen3_tokenizer_dir, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert TokenizerFile(qwen3_tokenizer_dir, tmp_path / "file").facts(EOD).eod_id == 151643


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "merges": [["a b", "c"]]},
        {"type": "BPE", "merges": [["a", ""]]},
        {"type": "BPE", "merges": ["a b c"]},
        {"type": "WordLevel"},
    ],
)
def test_what_strings_cannot_say_has_no_copy(model):
    assert compact_json({"model": model}) is None


def test_a_run_with_the_copy_writes_the_same_bytes(
    run, write_jsonl, qwen3_tokenizer_dir, cache_dir, tmp_path
):
    pytest.importorskip("fastokens")
    source = write_jsonl([{"text": text} for text in random_texts(200, seed=3)])
    written = []
    for name in ("first", "second"):
        words = (
            "--input",
            source,
            "--output-prefix",
            tmp_path / name,
            "--tokenizer-dir",
            qwen3_tokenizer_dir,
        )
        result = run("preprocess", *words, "--engine", "fastokens")
        assert result.exit_code == 0, result.output
        assert len(list((cache_dir / "tokenizers").iterdir())) == 1
        written.append((tmp_path / f"{name}_text_document.bin").read_bytes())
    assert written[0] == written[1]
