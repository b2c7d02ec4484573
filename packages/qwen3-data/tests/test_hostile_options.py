"""Values on the command line that cannot work, or would lose something."""

import json
import os
import random

import pytest

from qwen3_data.encode.sentences import split_sentences
from qwen3_data.input import blocks
from qwen3_data.input.wikitext import ArticleReader
from qwen3_model.text.tokens import open_tokens, read_manifest

GOOD = '{"text": "one"}\n'


@pytest.mark.parametrize("prefix", ["", ".", "..", "/", "data/", "data/.."])
def test_an_output_prefix_without_a_name_is_refused(run, tmp_path, demo_tokenizer_dir, prefix):
    (tmp_path / "in.jsonl").write_text(GOOD)
    words = ("--input", tmp_path / "in.jsonl", "--tokenizer-dir", demo_tokenizer_dir, "--output-prefix")
    result = run("preprocess", *words, prefix)
    assert result.exit_code == 2
    assert "ends in no name" in result.stderr


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_token_file_without_a_name_is_refused(run, command):
    result = run(command, "..")
    assert result.exit_code == 1
    assert ".." in result.stderr


@pytest.mark.parametrize("size", ["\u00b2M", "9" * 5000, "0", "1.5.2G", "M"])
def test_a_size_that_is_none_is_refused(preprocess, tmp_path, size):
    (tmp_path / "in.jsonl").write_text(GOOD)
    assert preprocess(tmp_path / "in.jsonl", "--shard-size", size).exit_code == 2


def test_more_threads_than_any_machine_has_are_refused(preprocess, tmp_path):
    (tmp_path / "in.jsonl").write_text(GOOD)
    assert preprocess(tmp_path / "in.jsonl", "--workers", 1_000_000).exit_code == 2


def test_a_key_that_is_no_name_is_refused(preprocess, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"a/b": "one"}\n')
    result = preprocess(tmp_path / "in.jsonl", "--json-keys", "a/b")
    assert result.exit_code == 1
    assert "the key 'a/b'" in result.stderr


@pytest.mark.parametrize("parts", ["3000000000", "1e300"])
def test_more_parts_than_names_are_refused(run, parts):
    result = run("split", "any", "--parts", parts)
    assert result.exit_code == 2
    assert "100000 at most" in result.stderr


def test_the_list_of_bad_records_replaces_no_input(preprocess, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(GOOD + "bad\n")
    result = preprocess(source, "--on-error", "skip", "--rejects", source, "--force")
    assert result.exit_code == 1
    assert "is an input" in result.stderr
    assert source.read_text() == GOOD + "bad\n"


def test_token_files_replace_no_input(preprocess, tmp_path):
    source = tmp_path / "out_text_document.json"
    source.write_text(f"[{GOOD}]")
    assert "is an input" in preprocess(source, "--force").stderr
    assert source.read_text() == f"[{GOOD}]"


def test_an_existing_list_of_bad_records_stays_without_force(preprocess, outputs, tmp_path):
    source, rejects = tmp_path / "in.jsonl", tmp_path / "bad.jsonl"
    source.write_text(GOOD + "bad\n")
    rejects.write_text("mine")
    words = (source, "--on-error", "skip", "--rejects", rejects)
    assert "already exists" in preprocess(*words).stderr
    assert (rejects.read_text(), outputs()) == ("mine", [])
    assert preprocess(*words, "--force").exit_code == 0
    assert json.loads(rejects.read_text())["record"] == 2


def test_a_list_of_bad_records_that_cannot_be_written_stops_the_run_before_it_begins(
    preprocess, outputs, tmp_path
):
    (tmp_path / "in.jsonl").write_text(GOOD)
    result = preprocess(tmp_path / "in.jsonl", "--rejects", "/proc/bad.jsonl")
    assert (result.exit_code, outputs()) == (1, [])


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_records_after_max_docs_are_not_looked_at(preprocess, tmp_path, on_error):
    (tmp_path / "in.jsonl").write_text(GOOD * 2 + "bad\n" + '{"text": "<|im_end|>"}\n')
    result = preprocess(tmp_path / "in.jsonl", "--max-docs", 2, "--on-error", on_error)
    assert result.exit_code == 0, result.output
    manifest = read_manifest(tmp_path / "out_text_document")
    found = (manifest.num_documents, manifest.num_skipped_records, manifest.num_special_texts)
    assert found == (2, 0, 0)


def test_a_share_counts_lines_from_the_files_beginning(preprocess, tmp_path):
    (tmp_path / "in.jsonl").write_text(GOOD * 100 + "bad\n" + GOOD * 50 + "worse\n" + GOOD * 48)
    words = (tmp_path / "in.jsonl", "--shard-index", 1, "--num-shards", 2)
    assert "in.jsonl, line 101 is not JSON" in preprocess(*words).stderr
    rejects = tmp_path / "bad.jsonl"
    assert preprocess(*words, "--on-error", "skip", "--rejects", rejects).exit_code == 0
    assert [json.loads(line)["record"] for line in rejects.read_text().splitlines()] == [101, 152]


def test_special_texts_are_counted_for_each_key(preprocess, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "<|im_end|>", "title": "plain"}\n')
    assert preprocess(tmp_path / "in.jsonl", "--json-keys", "text", "title").exit_code == 0
    counts = [read_manifest(tmp_path / f"out_{key}_document").num_special_texts for key in ("text", "title")]
    assert counts == [1, 0]


@pytest.mark.parametrize("words", [["--no-append-eod"], ["--dtype", "int32"], ["--eod-token", "<|im_end|>"]])
def test_resume_takes_no_output_for_whole_that_other_options_made(preprocess, tmp_path, words):
    (tmp_path / "in.jsonl").write_text(GOOD)
    assert preprocess(tmp_path / "in.jsonl").exit_code == 0
    assert "already whole (1 document" in preprocess(tmp_path / "in.jsonl", "--resume").stdout
    result = preprocess(tmp_path / "in.jsonl", "--resume", *words)
    assert result.exit_code == 1
    assert "already exists" in result.stderr


def test_resume_takes_no_output_for_whole_whose_input_has_changed_since(preprocess, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(GOOD)
    assert preprocess(source).exit_code == 0
    source.write_text(GOOD * 2)
    assert "already exists" in preprocess(source, "--resume").stderr


def test_a_tokenizer_with_gaps_keeps_its_large_ids(preprocess, run, demo_tokenizer_dir, tmp_path):
    """Two bytes hold fewer than 65,500 entries, but not the ids of entries behind a gap."""
    tokenizer = json.loads((demo_tokenizer_dir / "tokenizer.json").read_text())
    for entry in tokenizer["added_tokens"]:
        entry["id"] += 70_000
    folder = tmp_path / "gaps"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "in.jsonl").write_text(GOOD)
    words = ("--input", tmp_path / "in.jsonl", "--output-prefix", tmp_path / "out", "--tokenizer-dir", folder)
    result = run("preprocess", *words)
    assert result.exit_code == 0, result.output
    manifest = read_manifest(tmp_path / "out_text_document")
    assert open_tokens(tmp_path / "out_text_document").ids[-1] == manifest.eod_id > 70_000
    assert run("verify", tmp_path / "out_text_document").exit_code == 0


@pytest.mark.parametrize(
    "change",
    [
        {"added_tokens": None},
        {"added_tokens": [{}]},
        {"added_tokens": ["a"]},
        {"pre_tokenizer": "a"},
        {"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1]}},
    ],
)
@pytest.mark.parametrize("engine", ["fastokens", "tokenizers"])
def test_a_damaged_tokenizer_is_refused_in_one_sentence(
    run, demo_tokenizer_dir, tmp_path, capfd, change, engine
):
    tokenizer = json.loads((demo_tokenizer_dir / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | change))
    (tmp_path / "in.jsonl").write_text(GOOD)
    words = ("--input", tmp_path / "in.jsonl", "--output-prefix", tmp_path / "out", "--engine", engine)
    result = run("preprocess", *words, "--tokenizer-dir", tmp_path)
    assert result.exit_code == 1
    assert str(tmp_path) in result.stderr or "<|endoftext|>" in result.stderr
    assert result.stderr.startswith("Error: ")
    assert capfd.readouterr().err == ""  # of the reference's process


def test_long_runs_take_time_in_proportion_to_their_length():
    """Quadratic patterns need hours for these; they take a moment."""
    for run_of in ("." * 300_000, "a\n" + " \n" * 150_000, "a" + "\t" * 300_000, ".)" * 150_000):
        assert split_sentences(run_of, keep_newlines=True) == ([run_of] if run_of.strip() else [])
    assert list(ArticleReader(keep_headings=True).read(["= " * 150_000 + "x"]))
    hostile = ["= a =", '<unk> " ' + "a . " * 150_000]
    assert not list(ArticleReader(keep_headings=True, unknown="drop").read(hostile))


def test_an_empty_line_ends_a_sentence_also_after_an_abbreviation():
    for gap in ("\n\n", "\n \n\n", "\r\n\r\n"):
        text = f"He lived in Washington D.C.{gap}Then he left."
        assert split_sentences(text, keep_newlines=False) == ["He lived in Washington D.C.", "Then he left."]


def test_sentences_joined_are_the_text():
    rng = random.Random(7)
    for _ in range(2000):
        text = "".join(
            rng.choice([".", " ", "\n", "\r\n", "!", "A", "b", "Mr.", ")", "\u3002", "1"]) for _ in range(12)
        )
        if text.strip():
            assert "".join(split_sentences(text, keep_newlines=True)) == text


@pytest.mark.parametrize(
    ("made", "asked", "named"),
    [
        (["--max-docs", "2"], [], "max-docs"),
        ([], ["--max-docs", "2"], "max-docs"),
        ([], ["--allow-special"], "allow-special"),
        (["--allow-special"], [], "allow-special"),
        (["--split-sentences"], ["--split-sentences", "--keep-newlines"], "keep-newlines"),
        ([], ["--no-append-eod"], "append-eod"),
        (["--no-append-eod"], ["--no-append-eod", "--eod-token", "<|im_end|>"], "eod-token"),
        ([], ["--dtype", "int32"], "dtype"),
        (["--json-keys", "text"], ["--json-keys", "text", "title"], "json-keys"),
    ],
)
def test_resume_names_the_setting_in_which_a_finished_output_differs(
    preprocess, tmp_path, made, asked, named
):
    line = json.dumps({"text": "One. Two.\n Three <|im_end|>", "title": "t"}) + "\n"
    (tmp_path / "in.jsonl").write_text(line * 4)
    assert preprocess(tmp_path / "in.jsonl", *made).exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out*")}
    result = preprocess(tmp_path / "in.jsonl", *asked, "--resume")
    assert result.exit_code == 1
    assert f"already exists and was made with another {named}" in result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out*")} == before
    assert "already whole (" in preprocess(tmp_path / "in.jsonl", *made, "--resume").stdout


def test_resume_of_a_finished_output_keeps_to_what_bad_records_were_to_do(preprocess, tmp_path):
    (tmp_path / "in.jsonl").write_text(GOOD + "bad\n" + GOOD)
    skip, rejects = ("--on-error", "skip"), ("--rejects", tmp_path / "r.jsonl")
    assert preprocess(tmp_path / "in.jsonl", *skip).exit_code == 0
    assert "made with another on-error" in preprocess(tmp_path / "in.jsonl", "--resume").stderr
    assert (
        "made with another rejects" in preprocess(tmp_path / "in.jsonl", *skip, *rejects, "--resume").stderr
    )
    assert not (tmp_path / "r.jsonl").exists()
    assert "already whole" in preprocess(tmp_path / "in.jsonl", *skip, "--resume").stdout


def test_a_list_of_no_rejects_is_written_when_a_finished_output_is_resumed(preprocess, tmp_path):
    (tmp_path / "in.jsonl").write_text(GOOD)
    assert preprocess(tmp_path / "in.jsonl").exit_code == 0
    words = ("--on-error", "skip", "--rejects", tmp_path / "r.jsonl", "--resume")
    assert "already whole" in preprocess(tmp_path / "in.jsonl", *words).stdout
    assert (tmp_path / "r.jsonl").read_bytes() == b""


@pytest.mark.parametrize("change", ["cut", "grow", "touch", "remove"])
def test_an_input_that_changes_while_it_is_read_is_an_error(
    preprocess, tmp_path, monkeypatch, outputs, change
):
    source = tmp_path / "in.jsonl"
    source.write_text(GOOD * 100)

    def read_and_change(*words, **options):
        if change == "cut":
            source.write_text(GOOD * 50)
        elif change == "grow":
            source.write_text(GOOD * 150)
        elif change == "touch":
            os.utime(source, ns=(1, 1))
        yield from blocks.read_blocks(*words, **options)
        if change == "remove":
            source.unlink()

    monkeypatch.setattr("qwen3_data.runs.encode_run.read_blocks", read_and_change)
    result = preprocess(source)
    assert result.exit_code == 1
    assert f"{source} changed while it was read" in result.stderr
    assert outputs() == []


def test_a_wrong_end_of_document_token_is_answered_with_the_special_ones(preprocess, tmp_path):
    (tmp_path / "in.jsonl").write_text(GOOD)
    result = preprocess(tmp_path / "in.jsonl", "--eod-token", "<|nope|>")
    assert "is no token of" in result.stderr
    assert "<|endoftext|>" in result.stderr
    assert "<|im_end|>" in result.stderr
    assert "<think>" not in result.stderr
