"""Token files equal those of an independent writer on the ids of `tokenizers`; bad input is one sentence."""

import hashlib
import json

import pytest
from megatron_reference import reference_files
from tokenizers import Tokenizer

from qwen3_data.write.token_writer import choose_dtype
from qwen3_model.errors import FormatError
from qwen3_model.text.tokens import open_tokens, read_manifest

TEXTS = [
    "Hello, world!",
    "",
    "你好\uff0c世界。\n\n第二段",
    "def f(x):\n    return x ** 2\n",
    "e\u0301 \u212b 👩‍👩‍👧",
]
EOD = 151643


def reference_ids(tokenizer_dir, texts, *, allow_special=False):
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.encode_special_tokens = not allow_special
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def files_of(tmp_path, name="out_text_document"):
    return (tmp_path / f"{name}.bin").read_bytes(), (tmp_path / f"{name}.idx").read_bytes()


@pytest.mark.parametrize("engine", ["fastokens", "tokenizers"])
def test_real_qwen3_files_equal_the_reference_byte_for_byte(
    run, write_jsonl, qwen3_tokenizer_dir, tmp_path, engine
):
    source = write_jsonl([{"text": text} for text in TEXTS])
    words = ("--input", source, "--output_prefix", tmp_path / "out", "--tokenizer_dir", qwen3_tokenizer_dir)
    result = run("preprocess", *words, "--engine", engine)
    assert result.exit_code == 0, result.output
    assert files_of(tmp_path) == reference_files(reference_ids(qwen3_tokenizer_dir, TEXTS), eod=EOD)
    assert "Processed 5 documents" in result.stdout
    assert "1 empty document" in result.stdout


def test_two_short_documents_are_these_bytes(run, write_jsonl, qwen3_tokenizer_dir, tmp_path):
    source = write_jsonl([{"text": "Hello"}, {"text": ""}, {"text": "Hello world"}])
    words = ("--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-dir", qwen3_tokenizer_dir)
    assert run("preprocess", *words).exit_code == 0
    data, index = files_of(tmp_path)
    # Hello 9707, " world" 1879, <|endoftext|> 151643
    assert data.hex() == "eb2500005b500200eb250000570700005b500200"
    assert index.hex() == (
        "4d4d494449445800000100000000000000" + "04" + "0200000000000000" + "0400000000000000"
        "0200000003000000"
        "00000000000000000800000000000000"
        "0000000000000000010000000000000001000000000000000200000000000000"
    )


def test_small_vocabularies_are_stored_in_two_bytes(preprocess, write_jsonl, demo_tokenizer_dir, tmp_path):
    vocab_size = Tokenizer.from_file(str(demo_tokenizer_dir / "tokenizer.json")).get_vocab_size()
    if vocab_size >= 65500:
        pytest.skip("the demo tokenizer is large")
    assert preprocess(write_jsonl([{"text": text} for text in TEXTS])).exit_code == 0
    eod = Tokenizer.from_file(str(demo_tokenizer_dir / "tokenizer.json")).token_to_id("<|endoftext|>")
    ids = reference_ids(demo_tokenizer_dir, TEXTS)
    assert files_of(tmp_path) == reference_files(ids, eod=eod, code=8, dtype="<u2")


def test_the_type_of_a_token_follows_megatrons_limit():
    assert choose_dtype("auto", 65499).name == "uint16"
    assert choose_dtype("auto", 65500).name == "int32"
    assert choose_dtype("uint16", 65536).name == "uint16"
    assert choose_dtype("int32", 10).name == "int32"
    with pytest.raises(FormatError, match="uint16 cannot hold a vocabulary of 65537"):
        choose_dtype("uint16", 65537)


def test_no_append_eod_leaves_documents_as_they_are(preprocess, write_jsonl, demo_tokenizer_dir, tmp_path):
    assert preprocess(write_jsonl([{"text": "a b"}, {"text": "c"}]), "--no-append-eod").exit_code == 0
    tokens = open_tokens(tmp_path / "out_text_document")
    wanted = reference_ids(demo_tokenizer_dir, ["a b", "c"])
    assert [tokens.sequence(number).tolist() for number in range(2)] == wanted
    assert read_manifest(tmp_path / "out_text_document").eod_appended is False


def test_every_key_gets_its_files(preprocess, write_jsonl, demo_tokenizer_dir, tmp_path):
    source = write_jsonl([{"title": "one", "text": "two", "more": 3}, {"text": "four", "title": "five"}])
    assert preprocess(source, "--json-keys", "text", "title").exit_code == 0
    for key, texts in (("text", ["two", "four"]), ("title", ["one", "five"])):
        tokens = open_tokens(tmp_path / f"out_{key}_document")
        wanted = reference_ids(demo_tokenizer_dir, texts)
        assert [tokens.sequence(number)[:-1].tolist() for number in range(2)] == wanted


def test_special_tokens_in_text_are_plain_text_and_counted(
    preprocess, write_jsonl, demo_tokenizer_dir, tmp_path
):
    texts = ["a<|im_end|>b<|endoftext|>", "plain <| text"]
    result = preprocess(write_jsonl([{"text": text} for text in texts]))
    assert "1 document with special tokens spelled out" in result.stdout
    tokens = open_tokens(tmp_path / "out_text_document")
    assert tokens.sequence(0)[:-1].tolist() == reference_ids(demo_tokenizer_dir, texts)[0]
    assert read_manifest(tmp_path / "out_text_document").num_special_texts == 1


def test_allow_special_makes_them_tokens(preprocess, write_jsonl, demo_tokenizer_dir, tmp_path):
    texts = ["a<|im_end|>b"]
    assert preprocess(write_jsonl([{"text": texts[0]}]), "--allow-special").exit_code == 0
    tokens = open_tokens(tmp_path / "out_text_document")
    assert tokens.sequence(0)[:-1].tolist() == reference_ids(demo_tokenizer_dir, texts, allow_special=True)[0]
    assert len(tokens.sequence(0)) == 4


def test_the_manifest_says_what_made_the_files(preprocess, write_jsonl, demo_tokenizer_dir, tmp_path):
    source = write_jsonl([{"text": text} for text in TEXTS])
    preprocess(source)
    manifest = read_manifest(tmp_path / "out_text_document")
    tokenizer = Tokenizer.from_file(str(demo_tokenizer_dir / "tokenizer.json"))
    raw = (demo_tokenizer_dir / "tokenizer.json").read_bytes()
    assert manifest.tokenizer_sha256 == hashlib.sha256(raw).hexdigest()
    assert manifest.vocab_size == tokenizer.get_vocab_size()
    assert (manifest.eod_id, manifest.eod_appended) == (tokenizer.token_to_id("<|endoftext|>"), True)
    assert (manifest.num_documents, manifest.num_sequences) == (5, 4)
    assert manifest.sources == (str(source),)


def test_another_eod_token_can_be_named(preprocess, write_jsonl, demo_tokenizer_dir, tmp_path):
    assert preprocess(write_jsonl([{"text": "a"}]), "--eod-token", "<|im_end|>").exit_code == 0
    tokenizer = Tokenizer.from_file(str(demo_tokenizer_dir / "tokenizer.json"))
    assert open_tokens(tmp_path / "out_text_document").ids[-1] == tokenizer.token_to_id("<|im_end|>")


def test_an_existing_output_is_kept_unless_forced(preprocess, write_jsonl, tmp_path):
    source = write_jsonl([{"text": "a"}])
    assert preprocess(source).exit_code == 0
    before = files_of(tmp_path)
    result = preprocess(write_jsonl([{"text": "b"}], "other.jsonl"))
    assert result.exit_code == 1
    assert "already exists; choose another output or pass --force" in result.stderr
    assert files_of(tmp_path) == before
    assert preprocess(tmp_path / "other.jsonl", "--force").exit_code == 0
    assert files_of(tmp_path) != before


def test_max_docs_stops_early(preprocess, write_jsonl, tmp_path):
    assert preprocess(write_jsonl([{"text": str(n)} for n in range(9)]), "--max-docs", 3).exit_code == 0
    assert open_tokens(tmp_path / "out_text_document").num_documents == 3


BAD = {
    "missing key": (b'{"body": "a"}', "has no key 'text'; its keys are ['body']"),
    "null": (b'{"text": null}', "has a JSON null under 'text'"),
    "nested": (b'{"text": {"a": "b"}}', "has a JSON object under 'text'"),
    "array of numbers": (
        b'{"text": ["a", 7]}',
        "has a JSON number in the array under 'text', which must hold",
    ),
    "array of arrays": (b'{"text": [["a"]]}', "has a JSON array in the array under 'text'"),
    "number": (b'{"text": 7}', "has a JSON number under 'text'"),
    "no object": (b'["a"]', "is a JSON array, not an object"),
    "no JSON": (b'{"text": "a"', "is not JSON"),
    "invalid UTF-8": (b'{"text": "a\xff"}', "is not UTF-8: byte 0xff at byte 12"),
    "raw NUL": (b'{"text": "a\x00"}', "is not JSON: Invalid control character"),
    "lone surrogate": (b'{"text": "\\ud800"}', "holds a lone surrogate \\ud800"),
    "nested too deeply": (b'{"text": ' + b"[" * 100000, "is nested too deeply"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_stops_the_run_with_its_place(preprocess, outputs, tmp_path, name):
    raw, sentence = BAD[name]
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "ok"}\n' * 2 + raw + b'\n{"text": "ok"}\n')
    result = preprocess(tmp_path / "in.jsonl")
    assert result.exit_code == 1
    assert f"in.jsonl, line 3 {sentence}" in result.stderr
    assert result.stderr.count("\n") == 1
    assert outputs() == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_skipped_counted_and_named(preprocess, tmp_path, name):
    raw, sentence = BAD[name]
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "ok"}\n' * 2 + raw + b'\n{"text": "ok"}\n')
    result = preprocess(tmp_path / "in.jsonl", "--on-error", "skip", "--rejects", tmp_path / "bad.jsonl")
    assert result.exit_code == 0, result.output
    assert "Processed 3 documents" in result.stdout
    assert "1 bad record skipped" in result.stdout
    (reject,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert (reject["file"], reject["record"]) == (str(tmp_path / "in.jsonl"), 3)
    assert sentence in reject["reason"]
    assert read_manifest(tmp_path / "out_text_document").num_skipped_records == 1


GOOD = {
    "BOM": (b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
    "CRLF": (b'{"text": "a"}\r\n{"text": "b"}\r\n', ["a", "b"]),
    "duplicate key": (b'{"text": "a", "text": "b"}\n', ["b"]),
    "escaped NUL": (b'{"text": "a\\u0000b"}\n', ["a\x00b"]),
    "line separator": ('{"text": "a\u2028b"}\n'.encode(), ["a\u2028b"]),
    "NaN elsewhere": (b'{"text": "a", "score": NaN}\n', ["a"]),
    "no last line end": (b'{"text": "a"}\n{"text": "b"}', ["a", "b"]),
    "blank lines": (b'\n{"text": "a"}\n  \n\n', ["a"]),
    "surrogate pair": (b'{"text": "\\ud83d\\ude00"}\n', ["\U0001f600"]),
    "empty document": (b'{"text": ""}\n{"text": "b"}\n', ["", "b"]),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_but_good_input_is_read(preprocess, demo_tokenizer_dir, tmp_path, name):
    raw, texts = GOOD[name]
    (tmp_path / "in.jsonl").write_bytes(raw)
    result = preprocess(tmp_path / "in.jsonl", "--dtype", "int32")
    assert result.exit_code == 0, result.output
    eod = read_manifest(tmp_path / "out_text_document").eod_id
    assert files_of(tmp_path) == reference_files(reference_ids(demo_tokenizer_dir, texts), eod=eod)


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_input_is_refused(preprocess, outputs, tmp_path, raw):
    (tmp_path / "in.jsonl").write_bytes(raw)
    result = preprocess(tmp_path / "in.jsonl")
    assert result.exit_code == 1
    assert "in.jsonl holds no document" in result.stderr
    assert outputs() == []


def test_a_cut_last_line_is_called_that(preprocess, outputs, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "o')
    result = preprocess(tmp_path / "in.jsonl")
    assert "line 2 is not JSON" in result.stderr
    assert "the last line has no line end, so the file may be cut" in result.stderr
    assert outputs() == []


def test_wrong_settings_are_refused_before_any_work(
    run, preprocess, outputs, write_jsonl, demo_tokenizer_dir, tmp_path
):
    source = write_jsonl([{"text": "a"}])
    (tmp_path / "empty").mkdir()
    words = ("--output-prefix", tmp_path / "out")
    cases = [
        (preprocess(tmp_path / "no.jsonl"), 1, "no.jsonl does not exist and matches no file"),
        (preprocess(tmp_path / "empty"), 1, "holds no file with a known ending"),
        (
            preprocess(demo_tokenizer_dir / "tokenizer.json", "--eod-token", "<|x|>"),
            1,
            "<|x|> is no token of",
        ),
        (preprocess(source, "--workers", 0), 2, "Invalid value for '--threads'"),
        (
            preprocess(source, "--shard-index", 2, "--num-shards", 2),
            1,
            "--shard-index 2 is not one of 0 to 1",
        ),
        (
            preprocess(source, "--tokenizer-type", "GPT2BPETokenizer"),
            2,
            "GPT2BPETokenizer would encode otherwise than Qwen3's tokenizer",
        ),
        (preprocess(source, "--json-keys", ","), 2, "--json-keys names no key"),
        (
            run("preprocess", "--input", source, *words, "--tokenizer-dir", tmp_path / "empty"),
            1,
            "holds no tokenizer.json",
        ),
        (run("preprocess", "--input", source, *words, "--tokenizer-dir", source), 2, "is a file"),
    ]
    for result, code, sentence in cases:
        assert result.exit_code == code, result.output
        assert sentence in result.stderr
    assert outputs() == []


def test_a_damaged_tokenizer_is_refused(run, write_jsonl, outputs, tmp_path):
    source = write_jsonl([{"text": "a"}])
    folder = tmp_path / "tok"
    folder.mkdir()
    words = ("--input", source, "--output-prefix", tmp_path / "out", "--tokenizer-dir", folder)
    model = '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}, "added_tokens": []}'
    for text, sentence in (("{", "is not JSON"), ("[]", "is no tokenizer"), (model, "tokenizer.json")):
        (folder / "tokenizer.json").write_text(text)
        result = run("preprocess", *words, "--eod-token", "a")
        assert result.exit_code == 1
        assert sentence in result.stderr
        assert "Traceback" not in result.output
    assert outputs() == []
