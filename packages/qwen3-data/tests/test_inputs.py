"""Inputs as people have them: folders, odd names, tables of other programs, files that were cut."""

import json
import os

import pytest

from qwen3_data.input.sources import find_sources
from qwen3_model.text.tokens import open_tokens, read_manifest

RECORD = '{"text": "one"}\n'


def names_in(folder):
    return [source.path.name for source in find_sources([str(folder)])]


@pytest.mark.parametrize("name", ["in.jsonl.zst", "in.txt.zst"])
def test_a_cut_zst_file_is_refused(preprocess, outputs, tmp_path, name):
    zstandard = pytest.importorskip("zstandard")
    # Cut behind a whole block, so that what is left decompresses, and ends with a line.
    raw = zstandard.ZstdCompressor(level=1).compress(os.urandom(1 << 20).hex().encode() + b"\n")
    (tmp_path / name).write_bytes(raw[:-100])
    result = preprocess(tmp_path / name)
    assert result.exit_code == 1
    assert f"{name} is damaged or cut" in result.stderr
    assert outputs() == []


def test_a_zst_file_of_several_frames_is_read_to_its_end(preprocess, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    packed = [zstandard.compress((RECORD * count).encode()) for count in (1, 5000, 0, 2)]
    (tmp_path / "in.jsonl.zst").write_bytes(b"".join(packed))
    assert preprocess(tmp_path / "in.jsonl.zst").exit_code == 0
    assert open_tokens(tmp_path / "out_text_document").num_documents == 5003


def test_a_folder_gives_its_visible_files_also_behind_links_and_in_capitals(tmp_path):
    folder, other = tmp_path / "folder", tmp_path / "other"
    for path in (folder / "b.JSONL", folder / ".hidden.jsonl", folder / ".x.partial/progress.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECORD)
    other.mkdir()
    (other / "a.jsonl").write_text(RECORD)
    (folder / "linked").symlink_to(other)
    (other / "back").symlink_to(folder)
    assert names_in(folder) == ["b.JSONL", "a.jsonl"]


def test_outputs_among_the_inputs_are_no_inputs(preprocess, tmp_path):
    (tmp_path / "a.jsonl").write_text(RECORD)
    assert preprocess(tmp_path).exit_code == 0
    assert preprocess(tmp_path, "--force").exit_code == 0
    assert read_manifest(tmp_path / "out_text_document").num_documents == 1


def test_a_file_name_that_is_no_utf8_is_named_with_an_escape(preprocess, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.jsonl")
    path.write_text(RECORD + "bad\n")
    result = preprocess(path, "--on-error", "skip", "--rejects", tmp_path / "bad.jsonl")
    assert result.exit_code == 0, result.output
    (source,) = read_manifest(tmp_path / "out_text_document").sources
    assert source.endswith("\\xff.jsonl")
    assert json.loads((tmp_path / "bad.jsonl").read_text())["file"] == source


def test_texts_of_a_parquet_file_may_be_bytes(preprocess, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["日本", "b"]}), tmp_path / "text.parquet")
    parquet.write_table(pyarrow.table({"text": ["日本".encode(), b"b"]}), tmp_path / "bytes.parquet")
    for name in ("text", "bytes"):
        assert preprocess(tmp_path / f"{name}.parquet", prefix=name).exit_code == 0
    ids = [open_tokens(tmp_path / f"{name}_text_document").ids.tolist() for name in ("text", "bytes")]
    assert ids[0] == ids[1]


def test_a_text_of_a_parquet_file_that_is_no_utf8_is_a_bad_record(preprocess, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    ends = pyarrow.py_buffer(b"".join(end.to_bytes(4, "little") for end in (0, 1, 3, 4)))
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, ends, pyarrow.py_buffer(b"a\x80zc")])
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "in.parquet")
    result = preprocess(tmp_path / "in.parquet")
    assert result.exit_code == 1
    assert "record 2 is not UTF-8: byte 0x80" in result.stderr
    assert preprocess(tmp_path / "in.parquet", "--on-error", "skip").exit_code == 0
    assert open_tokens(tmp_path / "out_text_document").num_documents == 2


def test_a_damaged_parquet_file_is_named(preprocess, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [os.urandom(100).hex() for _ in range(3000)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "in.parquet", use_dictionary=False)
    raw = bytearray((tmp_path / "in.parquet").read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 2000] = b"\xff" * 2000
    (tmp_path / "in.parquet").write_bytes(raw)
    result = preprocess(tmp_path / "in.parquet")
    assert result.exit_code == 1
    assert "in.parquet" in result.stderr
    assert "damaged" in result.stderr
