"""The token file reader against bytes laid out by hand from the format's table."""

import dataclasses
import gc
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from qwen3_model.errors import FormatError
from qwen3_model.text.tokens import Manifest, manifest_json, open_tokens, read_manifest

MANIFEST = Manifest(
    version=1,
    tokenizer_name="t",
    tokenizer_sha256="00",
    vocab_size=70000,
    eod_id=9,
    eod_appended=True,
    num_documents=3,
    num_sequences=2,
    num_tokens=5,
    sources=("a.jsonl",),
)


def write_pair(prefix, sequences, document_indices, *, code=4, dtype="<i4"):
    lengths = [len(sequence) for sequence in sequences]
    size = np.dtype(dtype).itemsize
    pointers = [size * sum(lengths[:number]) for number in range(len(lengths))]
    prefix.with_name(prefix.name + ".bin").write_bytes(
        b"".join(np.array(s, dtype).tobytes() for s in sequences)
    )
    prefix.with_name(prefix.name + ".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(lengths), len(document_indices))
        + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(lengths)}q", *pointers)
        + struct.pack(f"<{len(document_indices)}q", *document_indices)
    )


@pytest.fixture
def pair(tmp_path):
    prefix = tmp_path / "v1.5_text_document"
    write_pair(prefix, [[1, 2, 9], [70000, 9]], [0, 1, 1, 2])
    return prefix


def test_sequences_come_back(pair):
    tokens = open_tokens(pair)
    assert [tokens.sequence(number).tolist() for number in range(2)] == [[1, 2, 9], [70000, 9]]
    assert tokens.sequence(0, 1, 2).tolist() == [2, 9]
    assert (tokens.num_tokens, tokens.num_documents, tokens.dtype) == (5, 3, np.int32)
    assert tokens.document_indices.tolist() == [0, 1, 1, 2]


def test_a_part_beyond_its_sequence_is_refused(pair):
    with pytest.raises(IndexError):
        open_tokens(pair).sequence(1, 1, 2)


def test_small_vocabularies_use_two_bytes(tmp_path):
    write_pair(tmp_path / "p", [[65499, 1]], [0, 1], code=8, dtype="<u2")
    assert open_tokens(tmp_path / "p").sequence(0).tolist() == [65499, 1]


def test_an_empty_file_opens(tmp_path):
    write_pair(tmp_path / "p", [], [0])
    assert open_tokens(tmp_path / "p").num_tokens == 0


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_missing_half_is_named(pair, ending):
    pair.with_name(pair.name + ending).unlink()
    with pytest.raises(FormatError, match=rf"{ending} is missing"):
        open_tokens(pair)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"x" + raw[1:], "no token index"),
        (lambda raw: raw[:20], "no token index"),
        (lambda raw: raw[:9] + b"\x02" + raw[10:], "version 2"),
        (lambda raw: raw[:17] + b"\x07" + raw[18:], "type code 7"),
        (lambda raw: raw[:-1], "cut or damaged"),
        (lambda raw: raw[:34] + struct.pack("<i", 6) + raw[38:], "sequence 0 .* leaves its .bin"),
        (lambda raw: raw[:34] + struct.pack("<i", -1) + raw[38:], "sequence 0 .* leaves its .bin"),
        # A pointer near 2^63, whose sum with the length would wrap.
        (
            lambda raw: raw[:34] + struct.pack("<iiq", 2**31 - 1, 2, 2**63 - 8) + raw[50:],
            "sequence 0 .* leaves",
        ),
        (lambda raw: raw[:42] + struct.pack("<q", -(2**63)) + raw[50:], "sequence 0 .* leaves its .bin"),
        (lambda raw: raw[:42] + struct.pack("<q", 24) + raw[50:], "sequence 0 .* leaves its .bin"),
        (lambda raw: raw[:-8] + struct.pack("<q", 3), "not from 0 to 2"),
        (lambda raw: raw[:-24] + struct.pack("<qqq", 2, 1, 2), "go backwards"),
    ],
)
def test_a_damaged_index_is_refused(pair, change, message):
    path = pair.with_name(pair.name + ".idx")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FormatError, match=message):
        open_tokens(pair)


def test_a_cut_bin_is_refused(pair):
    path = pair.with_name(pair.name + ".bin")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FormatError, match=r"leaves its \.bin of 16 bytes"):
        open_tokens(pair)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="no whole number"):
        open_tokens(pair)


def test_the_manifest_comes_back(pair):
    assert read_manifest(pair) is None
    pair.with_name(pair.name + ".json").write_text(manifest_json(MANIFEST))
    assert read_manifest(pair) == MANIFEST


def test_a_manifest_of_version_1_is_read(pair):
    raw = json.loads(manifest_json(MANIFEST))
    del raw["settings"], raw["part"]
    pair.with_name(pair.name + ".json").write_text(json.dumps(raw))
    assert read_manifest(pair) == MANIFEST


def test_many_open_token_files_need_no_descriptors(pair):
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    held = [open_tokens(pair) for _ in range(50)]
    assert len(list(descriptors.iterdir())) == before
    assert all(tokens.sequence(1).tolist() == [70000, 9] for tokens in held)


def test_an_array_of_a_map_outlives_its_file_object(pair):
    part = open_tokens(pair).sequence(0)
    pair.with_name(pair.name + ".bin").unlink()
    gc.collect()
    assert part.tolist() == [1, 2, 9]
    with pytest.raises(ValueError, match="read-only"):
        part[0] = 3


def test_a_manifest_of_another_run_is_refused(pair):
    path = pair.with_name(pair.name + ".json")
    path.write_text(manifest_json(dataclasses.replace(MANIFEST, num_tokens=6)))
    with pytest.raises(FormatError, match="different runs"):
        read_manifest(pair)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version 3"),
        ({"version": "1"}, "has no version"),
        ({"eod_id": None}, r"wrong type in \['eod_id'\]"),
        ({"eod_appended": 1}, r"wrong type in \['eod_appended'\]"),
        ({"settings": []}, r"wrong type in \['settings'\]"),
        ({"sources": ["a", 5]}, r"wrong type in \['sources'\]"),
        ({"num_tokens": 2**63}, r"wrong type in \['num_tokens'\]"),
        ({"version": True}, r"wrong type in \['version'\]"),
        ({"colour": "red"}, r"unknown \['colour'\]"),
    ],
)
def test_a_damaged_manifest_is_refused(pair, change, message):
    raw = json.loads(manifest_json(MANIFEST)) | change
    pair.with_name(pair.name + ".json").write_text(json.dumps(raw))
    with pytest.raises(FormatError, match=message):
        read_manifest(pair)
