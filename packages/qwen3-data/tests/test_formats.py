"""Every kind of input gives the same token files; damaged ones are refused."""

import bz2
import gzip
import importlib.util
import json
import lzma
import random
import time
import tracemalloc

import pytest

from qwen3_data.input.block import Position
from qwen3_data.input.blocks import read_blocks
from qwen3_data.input.json_array import split_array
from qwen3_data.input.sources import find_sources
from qwen3_model.errors import FormatError
from qwen3_model.text.tokens import open_tokens

TEXTS = ["first", 'quotes " and \\ back\nslash', "", "日本語 [brackets] {braces}, commas", "\u2028 \x00 end"]


def lines(texts):
    return "".join(
        json.dumps({"text": text, "n": [1, {"a": "]"}]}, ensure_ascii=False) + "\n" for text in texts
    )


@pytest.fixture
def ids_of(preprocess, tmp_path):
    """Preprocess an input; return the ids of its documents, without the last."""

    def read(*words, **options):
        result = preprocess(*words, "--force", **options)
        assert result.exit_code == 0, result.output
        tokens = open_tokens(tmp_path / "out_text_document")
        return [
            tokens.ids[tokens.pointers[first] // tokens.dtype.itemsize :][
                : tokens.sequence_lengths[first]
            ].tolist()
            if last > first
            else []
            for first, last in zip(tokens.document_indices[:-1], tokens.document_indices[1:], strict=True)
        ]

    return read


@pytest.fixture
def wanted(ids_of, tmp_path):
    """Return the documents that plain JSON lines of TEXTS give."""
    (tmp_path / "plain.jsonl").write_text(lines(TEXTS))
    return ids_of(tmp_path / "plain.jsonl")


def write_zst(path, raw):
    zstandard = pytest.importorskip("zstandard")
    path.write_bytes(zstandard.ZstdCompressor().compress(raw))


COMPRESSORS = {
    ".gz": lambda path, raw: path.write_bytes(gzip.compress(raw)),
    ".bz2": lambda path, raw: path.write_bytes(bz2.compress(raw)),
    ".xz": lambda path, raw: path.write_bytes(lzma.compress(raw)),
    ".zst": write_zst,
}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_compressed_lines_are_read(ids_of, wanted, tmp_path, ending):
    path = tmp_path / f"in.jsonl{ending}"
    COMPRESSORS[ending](path, lines(TEXTS).encode())
    assert ids_of(path) == wanted


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_cut_and_false_compressed_files_are_refused(preprocess, outputs, tmp_path, ending):
    path = tmp_path / f"in.jsonl{ending}"
    noise = random.Random(1).randbytes(5000).hex()
    COMPRESSORS[ending](path, lines([noise]).encode())
    path.write_bytes(path.read_bytes()[:-20])
    result = preprocess(path)
    assert result.exit_code == 1
    assert f"in.jsonl{ending}" in result.stderr
    path.write_text(lines(["not compressed"]))
    result = preprocess(path)
    assert result.exit_code == 1
    assert f"in.jsonl{ending} is " in result.stderr
    assert outputs() == []


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read(ids_of, wanted, tmp_path, indent):
    path = tmp_path / "in.json"
    path.write_text(json.dumps([json.loads(line) for line in lines(TEXTS).split("\n")[:-1]], indent=indent))
    assert ids_of(path) == wanted


def test_json_lines_named_json_are_read(ids_of, wanted, tmp_path):
    (tmp_path / "in.json").write_text(lines(TEXTS))
    assert ids_of(tmp_path / "in.json") == wanted


def test_stdin_is_read(ids_of, wanted):
    assert ids_of("-", input=lines(TEXTS)) == wanted


def test_parquet_is_read(ids_of, wanted, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    parquet.write_table(pyarrow.table({"n": list(range(5)), "text": TEXTS}), tmp_path / "in.parquet")
    assert ids_of(tmp_path / "in.parquet") == wanted


def test_long_rows_of_a_parquet_file_are_read_a_few_at_a_time(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    texts = [f"{number} {'x' * 500_000}" for number in range(40)]
    table = pyarrow.table({"text": texts, "n": list(range(40))})
    parquet.write_table(table, tmp_path / "in.parquet", use_dictionary=False, compression="none")
    blocks = list(read_blocks(find_sources([str(tmp_path / "in.parquet")]), Position(), keys=["text"]))
    assert max(len(block.records) for block in blocks) == 8  # 4 MiB of 0.5 MB rows
    assert [json.loads(raw)["text"] for block in blocks for raw in block.records] == texts


def test_parquet_without_the_column_is_refused(preprocess, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "in.parquet")
    assert "has no column ['text']; its columns are ['body']" in preprocess(tmp_path / "in.parquet").stderr
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    assert "bad.parquet is no parquet file" in preprocess(tmp_path / "bad.parquet").stderr


def test_a_text_file_is_one_document(ids_of, preprocess, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfline one\r\nline two\n")
    (tmp_path / "same.jsonl").write_text(lines(["line one\r\nline two\n"]))
    assert ids_of(tmp_path / "a.txt") == ids_of(tmp_path / "same.jsonl")
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    result = preprocess(tmp_path / "bad.txt", "--force")
    assert result.exit_code == 1
    assert "bad.txt, record 1 is not UTF-8: byte 0xff at byte 3" in result.stderr


def test_folders_and_patterns_are_read_in_the_order_of_names(ids_of, tmp_path):
    folder = tmp_path / "many"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.jsonl").write_text(lines(["b"]))
    (folder / "a.jsonl").write_text(lines(["a"]))
    (folder / "sub" / "c.jsonl.gz").write_bytes(gzip.compress(lines(["c"]).encode()))
    (folder / "notes.md").write_text("no data")
    single = {name: ids_of(path) for name, path in (("a", folder / "a.jsonl"), ("b", folder / "b.jsonl"))}
    assert ids_of(folder)[:2] == single["a"] + single["b"]
    assert len(ids_of(folder)) == 3
    assert ids_of(folder / "*.jsonl") == single["a"] + single["b"]
    assert ids_of(folder / "b.jsonl", "--input", folder)[:2] == single["b"] + single["a"]
    assert len(ids_of(folder / "b.jsonl", "--input", folder)) == 3


def test_an_unknown_ending_is_refused(preprocess, tmp_path):
    (tmp_path / "in.csv").write_text("a,b")
    result = preprocess(tmp_path / "in.csv")
    assert result.exit_code == 1
    assert "in.csv has no known ending; rename it to one of .jsonl" in result.stderr


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_an_array_is_split_the_same_in_any_chunks(size):
    elements = [{"text": text, "n": [1, [2, {"x": "]},["}]]} for text in TEXTS] + [1, "two", None, [], {}]
    raw = json.dumps(elements, ensure_ascii=size % 2 == 0).encode()
    chunks = [raw[at : at + size] for at in range(0, len(raw), size)]
    assert [json.loads(part) for part in split_array(iter(chunks), "x", 1 << 20)] == elements


def test_a_damaged_array_is_refused(preprocess, tmp_path):
    for raw, sentence in (
        ('[{"text": "a"}', "ends inside its JSON array"),
        ('[{"text": "a"}]\n[{"text": "b"}]', "goes on after the end of its JSON array"),
        ('[{"text": "a"},, {"text": "b"}]', "has two commas in a row"),
        ("[]", "holds no document"),
    ):
        (tmp_path / "in.json").write_text(raw)
        result = preprocess(tmp_path / "in.json")
        assert result.exit_code == 1
        assert sentence in result.stderr, raw
    with pytest.raises(FormatError, match="ends inside"):
        list(split_array(iter([b"[1, 2"]), "x", 1 << 20))


@pytest.mark.skipif(importlib.util.find_spec("zstandard") is not None, reason="zstandard is installed")
def test_zst_without_its_package_names_the_extra(preprocess, tmp_path):
    (tmp_path / "in.jsonl.zst").write_bytes(b"x")
    assert "pip install 'qwen3-data[zstd]'" in preprocess(tmp_path / "in.jsonl.zst").stderr


def test_a_dot_in_a_key_leads_into_an_object(preprocess, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"meta": {"text": "inside", "deep": {"er": "down"}}, "meta.text": "flat"}\n'
        '{"meta": {"text": "inside", "deep": {"er": "down"}}}\n'
    )
    assert preprocess(tmp_path / "in.jsonl", "--json-keys", "meta.text", "meta.deep.er").exit_code == 0
    (tmp_path / "plain.jsonl").write_text('{"a": "flat", "b": "down"}\n{"a": "inside", "b": "down"}\n')
    assert preprocess(tmp_path / "plain.jsonl", "--json-keys", "a", "b", prefix="plain").exit_code == 0
    for ours, theirs in (("out_meta.text", "plain_a"), ("out_meta.deep.er", "plain_b")):
        assert (tmp_path / f"{ours}_document.bin").read_bytes() == (
            tmp_path / f"{theirs}_document.bin"
        ).read_bytes()
    result = preprocess(tmp_path / "in.jsonl", "--json-keys", "meta.none", prefix="none")
    assert "has no key 'meta.none'; its keys are ['meta', 'meta.text']" in result.stderr


def test_a_dot_in_a_key_leads_into_a_column_of_parquet(preprocess, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"meta": [{"text": "one", "n": 1}, {"text": "two", "n": 2}], "other": ["x", "y"]})
    parquet.write_table(table, tmp_path / "in.parquet")
    assert preprocess(tmp_path / "in.parquet", "--json-keys", "meta.text").exit_code == 0
    (tmp_path / "plain.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert preprocess(tmp_path / "plain.jsonl", prefix="plain").exit_code == 0
    assert (tmp_path / "out_meta.text_document.bin").read_bytes() == (
        tmp_path / "plain_text_document.bin"
    ).read_bytes()


def test_an_object_over_several_lines_is_named(preprocess, tmp_path):
    (tmp_path / "in.json").write_text('{\n  "text": "one"\n}\n')
    result = preprocess(tmp_path / "in.json")
    assert (
        "in.json, record 1 begins an object of several lines; write each object on one line" in result.stderr
    )


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.txt", "in.jsonl.gz", "in.jsonl.bz2"])
def test_a_record_longer_than_the_limit_stops_the_run_before_it_is_held(preprocess, outputs, tmp_path, name):
    record = json.dumps({"text": "a" * (40 << 20)}).encode()
    raw = {"in.json": b'[{"text": "b"}, ' + record + b"]", "in.txt": record}.get(
        name, b'{"text": "b"}\n' + record
    )
    compress = {".gz": gzip.compress, ".bz2": bz2.compress}.get((tmp_path / name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(raw))
    tracemalloc.start()
    result = preprocess(tmp_path / name, "--max-record-bytes", "10M")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.exit_code == 1
    assert "more than 10485760 bytes" in result.stderr
    assert "--max-record-bytes" in result.stderr
    assert peak < 40 << 20
    assert outputs() == []


def test_a_short_limit_holds_for_every_line(preprocess, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "aaaaaaaaaaaaaaaaaaaa"}\n')
    assert (
        "line 2 has more than 20 bytes" in preprocess(tmp_path / "in.jsonl", "--max-record-bytes", 20).stderr
    )


def test_a_row_of_parquet_beyond_the_longest_record_is_refused(preprocess, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    parquet.write_table(pyarrow.table({"text": ["a", "b" * 5000, "c"]}), tmp_path / "in.parquet")
    done = preprocess(tmp_path / "in.parquet", "--max-record-bytes", "1000")
    assert done.exit_code == 1
    assert "in.parquet, record 2 has more than 1000 bytes; raise --max-record-bytes" in done.stderr


def test_a_text_that_a_dictionary_of_parquet_repeats_takes_little_memory(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    text = pyarrow.array(["x" * 8_000_000]).dictionary_encode()
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2000, pyarrow.int32()), text.dictionary)
    path = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table({"text": column}), path, dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 1_000_000  # for 16 GB of texts
    block = next(read_blocks(find_sources([str(path)]), Position(), keys=["text"]))
    assert 1 <= len(block.records) <= 40


def test_a_long_text_in_an_array_is_looked_at_once(tmp_path):
    from qwen3_data.input.json_array import split_array

    text = b'"' + b"\\\\ab\\" + b'"' * 1
    pieces = [b"[", text, *[b'x\\"y' * 200_000] * 64, b"\\", b'\\"', b',{"a":"]"}]']
    started_s = time.process_time()
    found = list(split_array(pieces, "x", 1 << 30))
    assert found == [b"".join(pieces[1:-1]) + pieces[-1][: -len(b',{"a":"]"}]')], b'{"a":"]"}']
    assert time.process_time() - started_s < 5
    for size in (1, 2, 3, 7):
        whole = b'[{"k":"a\\\\"}, "\\"]", [1,[2]], "x,y", {"\\u005d": "\\\\\\""}]'
        cut = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [json.loads(each) for each in split_array(cut, "x", 100)] == json.loads(whole)
