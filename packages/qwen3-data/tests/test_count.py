"""count says what preprocess would write; detokenize gives back what it wrote."""

import json

import pytest

from qwen3_model.text.tokens import read_manifest

TEXTS = ["One two.", "", "\u4f60\u597d <|im_end|>", "five " * 300_000, "last"]


@pytest.fixture
def source(write_jsonl):
    return write_jsonl([{"text": text, "title": text[:5]} for text in TEXTS])


@pytest.mark.parametrize("engine", ["tokenizers", "fastokens"])
def test_count_says_what_preprocess_writes(run, preprocess, source, demo_tokenizer_dir, outputs, engine):
    words = ("--json-keys", "text", "title", "--engine", engine)
    result = run("count", "--input", source, "--tokenizer-dir", demo_tokenizer_dir, *words)
    assert result.exit_code == 0, result.output
    assert outputs() == []
    assert preprocess(source, *words).exit_code == 0
    for key in ("text", "title"):
        manifest = read_manifest(source.parent / f"out_{key}_document")
        assert f"{key}: 5 documents (1 empty), " in result.stdout
        assert f" {manifest.num_tokens - 4:,} tokens; {manifest.num_tokens:,} with" in result.stdout


def test_count_skips_and_stops_as_asked(run, demo_tokenizer_dir, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\nbad\n{"text": "b"}\n{"text": "c"}\n')
    words = ("count", "--input", tmp_path / "in.jsonl", "--tokenizer-dir", demo_tokenizer_dir)
    assert "line 2 is not JSON" in run(*words).stderr
    result = run(*words, "--on-error", "skip", "--max-docs", 2)
    assert "text: 2 documents (0 empty), 2 characters, 2 tokens; 4 with" in result.stdout
    assert "1 bad record skipped" in result.stdout


@pytest.mark.parametrize("words", [(), ("--no-append-eod",), ("--split-sentences", "--keep-newlines")])
def test_what_detokenize_writes_gives_the_same_tokens_again(
    run, preprocess, source, demo_tokenizer_dir, tmp_path, words
):
    assert preprocess(source, *words).exit_code == 0
    ending = "sentence" if "--split-sentences" in words else "document"
    prefix, restored = tmp_path / f"out_text_{ending}", tmp_path / "back.jsonl"
    result = run("detokenize", f"{prefix}.bin", restored, "--tokenizer-dir", demo_tokenizer_dir)
    assert result.exit_code == 0, result.output
    assert f"{restored}: 5 documents" in result.stdout
    texts = [json.loads(line)["text"] for line in restored.read_text().splitlines()]
    assert ["".join(text) for text in texts] == TEXTS
    assert preprocess(restored, *words, prefix="again").exit_code == 0
    for name in (".bin", ".idx"):
        again = tmp_path / f"again_text_{ending}{name}"
        assert again.read_bytes() == prefix.with_name(prefix.name + name).read_bytes()


def test_detokenize_refuses_another_tokenizer_and_an_existing_file(
    run, preprocess, write_jsonl, demo_tokenizer_dir, tmp_path
):
    assert preprocess(write_jsonl([{"text": "a"}])).exit_code == 0
    other = tmp_path / "other"
    other.mkdir()
    parsed = json.loads((demo_tokenizer_dir / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(parsed, indent=3))
    words = ("detokenize", tmp_path / "out_text_document", tmp_path / "back.jsonl", "--tokenizer-dir")
    result = run(*words, other)
    assert result.exit_code == 1
    assert "was made with tokenizer, sha256" in result.stderr
    assert not (tmp_path / "back.jsonl").exists()
    (tmp_path / "back.jsonl").write_text("mine")
    assert "already exists" in run(*words, demo_tokenizer_dir).stderr
    assert (tmp_path / "back.jsonl").read_text() == "mine"
