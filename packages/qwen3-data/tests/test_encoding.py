"""Both engines give the ids of `tokenizers`, whole or in pieces; long documents stay bytes."""

import json
import random
from itertools import chain

import numpy as np
import pytest
from hard_texts import HAND_MADE, LETTERS, random_texts
from tokenizers import Tokenizer

from qwen3_data.encode.encoding import encode_batches
from qwen3_data.encode.engines import FastokensEngine, TokenizersEngine
from qwen3_data.encode.splitting import can_split, split_stream, split_text
from qwen3_data.encode.tokenizer_facts import TokenizerFile
from qwen3_data.input.block import Position
from qwen3_data.input.long_text import LongText, load_long_record
from qwen3_data.input.records import Batch
from qwen3_model.text.tokens import open_tokens, read_manifest

TEXTS = [*HAND_MADE, *random_texts(3000, seed=5)]


@pytest.fixture(scope="module")
def path(qwen3_tokenizer_dir):
    return qwen3_tokenizer_dir / "tokenizer.json"


@pytest.fixture(scope="module")
def file(qwen3_tokenizer_dir):
    return TokenizerFile(qwen3_tokenizer_dir)


@pytest.fixture(scope="module")
def fast(file):
    pytest.importorskip("fastokens")
    return FastokensEngine(file, allow_special=False)


@pytest.fixture(scope="module")
def reference(file):
    return TokenizersEngine(file, allow_special=False)


def ids_of(engine, texts):
    ids_T, offsets = engine.encode(texts)
    return [part.tolist() for part in np.split(ids_T, offsets[1:-1])]


def assert_same(texts, got, wanted):
    for text, one, other in zip(texts, got, wanted, strict=True):
        assert one == other, f"{text[:200]!r}"


def test_fastokens_equals_tokenizers_on_hard_texts(fast, reference):
    assert_same(TEXTS, ids_of(fast, TEXTS), ids_of(reference, TEXTS))


def test_fastokens_equals_tokenizers_where_special_tokens_are_allowed(file):
    pytest.importorskip("fastokens")
    texts = [text for text in TEXTS if "<" in text]
    fast, slow = (engine(file, allow_special=True) for engine in (FastokensEngine, TokenizersEngine))
    assert_same(texts, ids_of(fast, texts), ids_of(slow, texts))


def test_tokenizers_engine_gives_the_ids_of_tokenizers(reference, path):
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in HAND_MADE]
    assert_same(HAND_MADE, ids_of(reference, HAND_MADE), wanted)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_pieces_have_the_ids_of_the_whole(fast, size):
    rng = random.Random(size)
    words = [*LETTERS, "word", " next", "\u4e2d\u6587", "end.", "line\n"]
    texts = ["".join(rng.choices(words, k=rng.randrange(1, 400))) for _ in range(300)]
    pieces = [list(split_text(text, size)) for text in texts]
    assert ["".join(parts) for parts in pieces] == texts
    assert sum(map(len, pieces)) > 4 * len(texts)
    got = [list(chain(*ids_of(fast, parts))) for parts in pieces]
    assert_same(texts, got, ids_of(fast, texts))


def test_a_stream_is_cut_at_borders_only(fast):
    text = "".join(random_texts(200, seed=9))
    chunks = [text[at : at + 13] for at in range(0, len(text), 13)]
    pieces = list(split_stream(chunks, 100))
    assert "".join(pieces) == text
    assert len(pieces) > 20
    assert list(chain(*ids_of(fast, pieces))) == ids_of(fast, [text])[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\s+"),
        lambda raw: raw["normalizer"].update(type="NFKC"),
        lambda raw: raw["added_tokens"][0].update(lstrip=True),
        lambda raw: raw["added_tokens"][0].update(content="two words"),
    ],
)
def test_texts_are_not_cut_for_other_tokenizers(path, change):
    raw = json.loads(path.read_text())
    assert can_split(raw)
    change(raw)
    assert not can_split(raw)


@pytest.fixture
def small_chunks(monkeypatch):
    """Treat records of 1 kB as long and cut them every 100 bytes."""
    monkeypatch.setattr("qwen3_data.input.records.LONG_BYTES", 1000)
    monkeypatch.setattr("qwen3_data.input.blocks.LONG_BYTES", 1000)
    monkeypatch.setattr("qwen3_data.input.long_text.CHUNK_BYTES", 100)
    monkeypatch.setattr("qwen3_data.encode.encoding.PIECE_CHARS", 300)
    monkeypatch.setattr("qwen3_data.encode.encoding.CHUNK_CHARS", 1000)


@pytest.mark.parametrize("ascii_only", [False, True])
def test_long_records_give_the_bytes_of_short_ones(preprocess, tmp_path, request, ascii_only):
    texts = ["".join(random_texts(60, seed=seed)) for seed in range(4)]
    texts += ["\\" * 3000, '"' * 3000, "\U0001f600" * 1500, "x" * 3000, "\u00e9\\u00e9" * 800, "short"]
    lines = [json.dumps({"n": {"text": "inner"}, "text": text}, ensure_ascii=ascii_only) for text in texts]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert preprocess(tmp_path / "in.jsonl", prefix="whole").exit_code == 0
    request.getfixturevalue("small_chunks")
    result = preprocess(tmp_path / "in.jsonl")
    assert result.exit_code == 0, result.output
    for ending in (".bin", ".idx"):
        got, wanted = (tmp_path / f"{name}_text_document{ending}" for name in ("out", "whole"))
        assert got.read_bytes() == wanted.read_bytes()
    assert read_manifest(tmp_path / "out_text_document") == read_manifest(tmp_path / "whole_text_document")


def test_a_long_text_file_is_one_document(preprocess, tmp_path, request):
    text = "".join(random_texts(80, seed=2)).replace("\x00", "")
    (tmp_path / "in.txt").write_bytes(text.encode())
    assert preprocess(tmp_path / "in.txt", prefix="whole").exit_code == 0
    request.getfixturevalue("small_chunks")
    assert preprocess(tmp_path / "in.txt").exit_code == 0
    whole = open_tokens(tmp_path / "whole_text_document")
    assert open_tokens(tmp_path / "out_text_document").ids.tolist() == whole.ids.tolist()


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b'{"text": "%b\xff%b"}' % (b"a " * 900, b"b " * 900), "holds a string that is no text"),
        (b'{"text": "%b\\ud800 %b"}' % (b"a " * 900, b"b " * 900), "holds a string that is no text"),
        (b'{"text": "%b", "n": 01}' % (b"a " * 900), "is not JSON"),
        (b'{"text": "%b' % (b"a " * 900), "is not JSON"),
        (b'{"body": "%b"}' % (b"a " * 900), "has no key 'text'"),
    ],
)
def test_a_bad_long_record_is_one_sentence(preprocess, outputs, small_chunks, tmp_path, raw, sentence):
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "ok"}\n' + raw + b"\n")
    result = preprocess(tmp_path / "in.jsonl")
    assert result.exit_code == 1
    assert f"line 2 {sentence}" in result.stderr
    assert outputs() == []
    result = preprocess(tmp_path / "in.jsonl", "--on-error", "skip")
    assert "1 bad record skipped" in result.stdout


def test_a_long_record_keeps_its_other_values():
    raw = b'{"a": "%b", "b": 3, "c": "x"}' % (b"y" * (5 << 20))
    record = load_long_record(raw)
    assert isinstance(record["a"], LongText)
    assert "".join(record["a"].chunks()) == "y" * (5 << 20)
    assert (record["b"], record["c"]) == (3, "x")


def test_an_empty_batch_still_ends(fast):
    batch = Batch({"text": []}, Position(), 0)
    (part,) = encode_batches(iter([batch]), fast, splits=True, checker=None)
    assert part.finished is not None
    assert len(part.ids_T) == 0


def test_fastokens_is_named_when_it_is_asked_for_and_missing(preprocess, write_jsonl, monkeypatch):
    monkeypatch.setattr("qwen3_data.encode.engines._has_fastokens", lambda: False)
    source = write_jsonl([{"text": "a"}])
    result = preprocess(source, "--engine", "fastokens")
    assert result.exit_code == 1
    assert "needs the package fastokens" in result.stderr
    assert preprocess(source).exit_code == 0
