"""Tokenizers at which Rust libraries panic or raise bare exceptions end in a sentence."""

import copy
import json

import pytest

from qwen3_data.encode.reference_process import ReferenceProcess
from qwen3_model.errors import FormatError
from qwen3_model.text.tokenizer import Qwen3Tokenizer


def bad_regex(parsed):
    parsed["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(("},
        "behavior": "Isolated",
        "invert": False,
    }


def short_precompiled(parsed):
    parsed["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAAAAA="}


def long_prefix(parsed):
    parsed["model"]["continuing_subword_prefix"] = "x" * 1000


def no_merge(parsed):
    parsed["model"]["merges"] = [["nowhere", "found"]]


def word_level(parsed):
    parsed["model"] = {"type": "WordLevel", "vocab": {"known": 0}, "unk_token": "[UNK]"}


HOSTILE = (bad_regex, short_precompiled, long_prefix, no_merge, word_level)


@pytest.fixture
def folder(demo_tokenizer_dir, tmp_path):
    """Return a maker of tokenizer folders."""

    def make(change):
        parsed = copy.deepcopy(json.loads((demo_tokenizer_dir / "tokenizer.json").read_text()))
        change(parsed)
        place = tmp_path / "hostile"
        place.mkdir()
        (place / "tokenizer.json").write_text(json.dumps(parsed))
        return place

    return make


@pytest.mark.parametrize("engine", ["tokenizers", "fastokens"])
@pytest.mark.parametrize("change", HOSTILE)
def test_a_tokenizer_that_makes_a_library_panic_ends_in_a_sentence(
    run, write_jsonl, tmp_path, folder, change, engine
):
    words = ("--input", write_jsonl([{"text": "not known"}]), "--tokenizer-dir", folder(change))
    result = run("preprocess", *words, "--output-prefix", tmp_path / "out", "--engine", engine)
    if result.exit_code == 0:  # an engine may take what the other refuses
        assert engine == "fastokens"
        return
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Error: " in result.stderr
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("change", HOSTILE)
def test_the_reference_answers_each_question_with_a_sentence(folder, change):
    # A process that waited for another question would let this one wait for ever.
    reference = ReferenceProcess(folder(change) / "tokenizer.json", allow_special=False)
    with reference, pytest.raises(FormatError, match="`tokenizers` can"):
        reference.encode("not known")


@pytest.mark.parametrize("change", HOSTILE)
def test_the_tokenizer_of_all_packages_raises_our_error(folder, change):
    with pytest.raises(FormatError):
        Qwen3Tokenizer.from_dir(folder(change)).encode("not known")
