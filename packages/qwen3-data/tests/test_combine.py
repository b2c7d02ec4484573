"""merge, split and verify: bytes as of one run, whatever is wrong named."""

import dataclasses
import json
import resource

import numpy as np
import pytest
from megatron_reference import reference_files

from qwen3_model.text.tokens import manifest_json, open_tokens, read_manifest

TEXTS = ["one two three", "", "four", "five six " * 40, "", "seven"]
ENDINGS = (".bin", ".idx")


def bytes_of(prefix):
    return [prefix.with_name(prefix.name + ending).read_bytes() for ending in ENDINGS]


@pytest.fixture
def whole(preprocess, write_jsonl, tmp_path):
    assert preprocess(write_jsonl([{"text": text} for text in TEXTS])).exit_code == 0
    return tmp_path / "out_text_document"


def write_reference(prefix, documents, **options):
    for ending, raw in zip(ENDINGS, reference_files(documents, **options), strict=True):
        prefix.with_name(prefix.name + ending).write_bytes(raw)


@pytest.mark.parametrize("num_shards", [2, 3, 5])
def test_merged_shards_have_the_bytes_of_one_run(run, preprocess, write_jsonl, tmp_path, num_shards):
    rng = np.random.default_rng(num_shards)
    texts = ["word " * int(rng.integers(0, 60)) for _ in range(100)]
    first = write_jsonl([{"text": text} for text in texts[:40]], "a.jsonl")
    second = write_jsonl([{"text": text} for text in texts[40:]], "b.jsonl")
    (tmp_path / "array.json").write_text(json.dumps([{"text": "from an array"}]))
    sources = ("--input", tmp_path / "array.json", second)
    assert preprocess(first, *sources).exit_code == 0
    for index in range(num_shards):
        words = ("--shard-index", index, "--num-shards", num_shards)
        assert preprocess(first, *sources, *words, prefix="part").exit_code == 0
    parts = sorted(tmp_path.glob("part_*.idx"))
    assert len(parts) == num_shards
    result = run("merge", *parts, "--output-prefix", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert bytes_of(tmp_path / "merged") == bytes_of(tmp_path / "out_text_document")
    assert read_manifest(tmp_path / "merged") == read_manifest(tmp_path / "out_text_document")


def test_more_shards_than_lines_still_cover_each_line_once(run, preprocess, write_jsonl, tmp_path):
    source = write_jsonl([{"text": "a"}, {"text": "b"}])
    preprocess(source)
    for index in range(7):
        words = ("--shard-index", index, "--num-shards", 7)
        assert preprocess(source, *words, prefix="part").exit_code == 0
    parts = sorted(tmp_path.glob("part_*.idx"))
    assert run("merge", *parts, "--output-prefix", tmp_path / "merged").exit_code == 0
    assert bytes_of(tmp_path / "merged") == bytes_of(tmp_path / "out_text_document")


def test_megatrons_own_files_merge_without_manifest(run, tmp_path):
    (tmp_path / "in").mkdir()
    write_reference(tmp_path / "in" / "a", [[1, 2], [], [3]])
    write_reference(tmp_path / "in" / "b", [[], [4, 5, 6]])
    assert run("merge", "--input", tmp_path / "in", "--output-prefix", tmp_path / "m").exit_code == 0
    assert bytes_of(tmp_path / "m") == list(reference_files([[1, 2], [], [3], [], [4, 5, 6]]))
    assert read_manifest(tmp_path / "m") is None


def test_what_cannot_be_merged_is_refused(run, tmp_path):
    write_reference(tmp_path / "a", [[1, 2]])
    write_reference(tmp_path / "b", [[1, 2]], code=8, dtype="<u2")
    (tmp_path / "empty").mkdir()
    cases = [
        ((tmp_path / "a", tmp_path / "b", "--output-prefix", tmp_path / "m"), "has uint16 tokens, but"),
        (
            (tmp_path / "a", tmp_path / "a", "--output-prefix", tmp_path / "a"),
            "is input and output of the merge",
        ),
        ((tmp_path / "a", "--output-prefix", tmp_path / "b"), "already exists"),
        ((tmp_path / "none", "--output-prefix", tmp_path / "m"), "none.idx is missing"),
        ((tmp_path / "empty", "--output-prefix", tmp_path / "m"), "holds no .idx file"),
    ]
    for words, sentence in cases:
        result = run("merge", *words)
        assert result.exit_code == 1
        assert sentence in result.stderr
    assert not list(tmp_path.glob("m*")) + list(tmp_path.glob(".m*"))


def test_files_of_different_tokenizers_are_not_merged(run, whole, tmp_path):
    manifest = read_manifest(whole)
    for ending in ENDINGS:
        (tmp_path / f"other{ending}").write_bytes(whole.with_name(whole.name + ending).read_bytes())
    other = dataclasses.replace(manifest, tokenizer_sha256="0" * 64)
    (tmp_path / "other.json").write_text(manifest_json(other))
    result = run("merge", whole, tmp_path / "other", "--output-prefix", tmp_path / "m")
    assert result.exit_code == 1
    assert "only files of one tokenizer" in result.stderr


@pytest.mark.parametrize("parts", ["2", "3", "5,90,5"])
def test_split_parts_merge_back_to_the_whole(run, whole, tmp_path, parts):
    result = run("split", whole, "--parts", parts)
    assert result.exit_code == 0, result.output
    pieces = sorted(tmp_path.glob("out_text_document_0*.idx"))
    assert (
        sum(open_tokens(piece.with_suffix("")).num_tokens for piece in pieces)
        == open_tokens(whole).num_tokens
    )
    assert run("merge", *pieces, "--output-prefix", tmp_path / "m").exit_code == 0
    assert bytes_of(tmp_path / "m") == bytes_of(whole)
    assert read_manifest(tmp_path / "m") == read_manifest(whole)


@pytest.mark.parametrize(
    ("parts", "code", "sentence"),
    [
        ("9", 1, "would hold no document"),
        ("1", 2, "must be two parts or more"),
        ("5,-1", 2, "must be two parts or more"),
        ("a", 2, "is neither a number of parts"),
        ("95,5x", 2, "'5x' is neither a number of parts nor a weight"),
        ("95,5_0", 2, "'5_0' is neither"),
        ("95,", 2, "'' is neither"),
        ("95;5", 2, "'95;5' is neither"),
        ("nan,1", 2, "must be two parts or more"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(run, whole, tmp_path, parts, code, sentence):
    result = run("split", whole, "--parts", parts)
    assert result.exit_code == code
    assert sentence in result.stderr
    assert not list(tmp_path.glob("out_text_document_0*"))


def test_a_whole_file_is_called_so(run, whole, demo_tokenizer_dir):
    result = run("verify", whole, "--tokenizer-dir", demo_tokenizer_dir)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{whole}: whole\n"


def test_each_damage_is_found(run, whole, qwen3_tokenizer_dir, tmp_path):
    def verify(*words):
        result = run("verify", whole, *words)
        assert result.exit_code == 1, result.output
        return result.stderr

    assert "sequence 0) is " in verify("--vocab-size", 10)
    assert "outside the vocabulary of 10" in verify("--vocab-size", 10)
    assert "was made with" in verify("--tokenizer-dir", qwen3_tokenizer_dir)
    path = whole.with_name(whole.name + ".bin")
    raw = path.read_bytes()
    size = open_tokens(whole).dtype.itemsize
    path.write_bytes(raw[:-size] + bytes(size))
    assert "1 document without the end-of-document id" in verify()
    path.write_bytes(raw[:-size])
    assert "leaves its .bin" in verify()
    path.write_bytes(raw + bytes(size))
    assert "of different runs" in verify()
    path.unlink()
    assert ".bin is missing" in verify()


def test_a_gap_between_sequences_is_found(run, tmp_path):
    write_reference(tmp_path / "a", [[1, 2], [3]])
    path = tmp_path / "a.bin"
    path.write_bytes(path.read_bytes() + bytes(4))
    result = run("verify", tmp_path / "a", "--vocab-size", 10)
    assert result.exit_code == 1
    assert "gap, overlap or rest at sequence 2" in result.stderr
    assert "has no manifest" in result.stderr


def test_inspect_shows_counts_lengths_and_text(run, whole, demo_tokenizer_dir):
    result = run(
        "inspect", f"{whole}.bin", "--tokenizer-dir", demo_tokenizer_dir, "--docs", 1, "--seq-length", 7
    )
    assert result.exit_code == 0, result.output
    tokens = open_tokens(whole)
    assert "documents  6 (2 empty)" in result.stdout
    assert f"tokens     {tokens.num_tokens:,} of" in result.stdout
    assert f"samples    {(tokens.num_tokens - 1) // 7:,} of seq_length 7" in result.stdout
    assert "'one two three<|endoftext|>'" in result.stdout


def test_inspect_of_nothing_is_one_sentence(run, tmp_path):
    result = run("inspect", tmp_path / "none")
    assert result.exit_code == 1
    assert "none.idx is missing" in result.stderr


def test_inspect_draws_the_lengths(run, whole, tmp_path):
    pytest.importorskip("matplotlib", exc_type=ImportError)
    result = run("inspect", whole, "--png", tmp_path / "lengths.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


UNKNOWN = {"num_skipped_records": None, "num_special_texts": None}


def shares(preprocess, source, count, *words, prefix="part"):
    for index in range(count):
        result = preprocess(source, "--shard-index", index, "--num-shards", count, *words, prefix=prefix)
        assert result.exit_code == 0, result.output


@pytest.fixture
def corpus(write_jsonl):
    return write_jsonl([{"text": f"word {number} <|im_end|>"} for number in range(60)])


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize(
    ("picked", "sentence"),
    [
        ([0, 2], "of 3 shares of a run, 1 are missing"),
        ([1, 2], "of 3 shares of a run, 0 are missing"),
        ([0, 1, 1, 2], "are both share 1 of 3; name each once"),
        ([0, 2, 1], "is share 1 of 3 and stands after share 2"),
    ],
)
def test_an_incomplete_repeated_or_unsorted_set_of_shares_is_refused(
    run, preprocess, corpus, tmp_path, picked, sentence, with_manifest
):
    shares(preprocess, corpus, 3)
    parts = sorted(tmp_path.glob("part_*.idx"))
    if not with_manifest:
        for part in parts:
            part.with_suffix(".json").unlink()
    result = run("merge", *[parts[number] for number in picked], "--output-prefix", tmp_path / "merged")
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert not list(tmp_path.glob("*merged*"))


def test_shares_of_other_runs_do_not_fill_a_gap(run, preprocess, corpus, tmp_path):
    shares(preprocess, corpus, 3, prefix="a")
    shares(preprocess, corpus, 4, prefix="b")
    shares(preprocess, corpus, 3, "--allow-special", prefix="c")

    def merge(*names):
        parts = [tmp_path / f"{name}_text_document.idx" for name in names]
        return run("merge", *parts, "--output-prefix", tmp_path / "merged", "--force")

    for first, *others in (
        ("a_00000-of-00003", "b_00001-of-00004", "b_00002-of-00004"),
        ("a_00000-of-00003", "c_00001-of-00003", "c_00002-of-00003"),
    ):
        result = merge(first, *others)
        assert result.exit_code == 1
        assert "of runs with different inputs or settings" in result.stderr
    both = [f"a_0000{number}-of-00003" for number in range(3)]
    both += [f"b_0000{number}-of-00004" for number in range(4)]
    assert merge(*both).exit_code == 0
    assert read_manifest(tmp_path / "merged").num_documents == 120


def test_a_set_that_may_be_incomplete_says_so(run, preprocess, corpus, tmp_path):
    shares(preprocess, corpus, 3)
    parts = sorted(tmp_path.glob("part_*.idx"))[:2]
    words = ("--output-prefix", tmp_path / "merged", "--allow-incomplete")
    assert run("merge", *parts, *words).exit_code == 0
    merged = read_manifest(tmp_path / "merged")
    assert merged.settings is None
    assert merged.num_documents == sum(read_manifest(part.with_suffix("")).num_documents for part in parts)


def test_parts_do_not_claim_the_counts_of_the_whole_and_give_them_back(run, preprocess, tmp_path):
    lines = [json.dumps({"text": f"text {number} " + "<|im_end|>" * (number < 7)}) for number in range(40)]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, "bad"]))
    assert preprocess(tmp_path / "in.jsonl", "--on-error", "skip").exit_code == 0
    whole = tmp_path / "out_text_document"
    manifest = read_manifest(whole)
    assert (manifest.num_special_texts, manifest.num_skipped_records) == (7, 1)
    assert run("split", whole, "--parts", "50,50").exit_code == 0
    parts = [tmp_path / f"out_text_document_0000{number}" for number in range(2)]
    for part in parts:
        held = read_manifest(part)
        assert (held.num_special_texts, held.num_skipped_records) == (None, None)
        assert "an unknown number of bad records" in run("inspect", part).stdout
    # Parts of a part give back the part, and all parts the whole.
    assert run("split", parts[0], "--parts", "3").exit_code == 0
    thirds = sorted(tmp_path.glob("out_text_document_00000_*.idx"))
    assert run("merge", *thirds, "--output-prefix", tmp_path / "half").exit_code == 0
    assert read_manifest(tmp_path / "half") == read_manifest(parts[0])
    assert run("merge", tmp_path / "half", parts[1], "--output-prefix", tmp_path / "again").exit_code == 0
    assert read_manifest(tmp_path / "again") == manifest
    assert bytes_of(tmp_path / "again") == bytes_of(whole)
    # Parts out of order are another file, of which only sums are known.
    assert run("merge", parts[1], parts[0], "--output-prefix", tmp_path / "turned").exit_code == 0
    turned = read_manifest(tmp_path / "turned")
    assert (turned.num_documents, turned.num_special_texts, turned.settings) == (40, None, None)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"settings": {"shard": "0 of 2"}}, "settings: shard is '0 of 2', not the index of a share"),
        ({"settings": {"shard": [0, None]}}, "settings: shard is [0, None], not the index of a share"),
        ({"settings": {"shard": [2, 2]}}, "settings: shard is [2, 2], not the index of a share"),
        (
            {"settings": {"shard": [0, 10**30]}},
            "1, 2, 3, 4, 5 and 999999999999999999999999999994 more are missing",
        ),
        ({"part": {"index": 0, "of": 1, "whole": [1]}}, "part: whole: [1] is not a section with keys"),
        ({"part": {"index": 0, "of": 1, "whole": {}}}, "part: whole: settings is missing"),
        (
            {"part": {"index": 0, "of": 1, "whole": {"settings": 1, "part": None, **UNKNOWN}}},
            "has values of a wrong type in ['settings']",
        ),
    ],
)
def test_a_manifest_of_another_form_is_one_sentence(run, preprocess, corpus, tmp_path, change, sentence):
    assert preprocess(corpus).exit_code == 0
    manifest = tmp_path / "out_text_document.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"settings": None} | change))
    result = run("merge", tmp_path / "out_text_document", "--output-prefix", tmp_path / "merged")
    assert (result.exit_code, "Traceback" in result.output) == (1, False)
    assert str(manifest.with_suffix("")) in result.stderr
    assert sentence in result.stderr


def test_more_files_than_a_process_may_open_are_merged(run, tmp_path):
    documents = [[number, number + 1] for number in range(300)]
    for number, document in enumerate(documents):
        write_reference(tmp_path / f"many_{number:03d}", [document])
    write_reference(tmp_path / "whole", documents)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(128, soft), hard))
    try:
        parts = sorted(tmp_path.glob("many_*.idx"))
        result = run("merge", *parts, "--output-prefix", tmp_path / "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert result.exit_code == 0, result.output
    assert bytes_of(tmp_path / "merged") == bytes_of(tmp_path / "whole")
