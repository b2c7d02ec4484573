import json
import struct
import time

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from qwen3_model.checkpoints.safetensors_file import (
    TensorPlan,
    from_float32,
    open_safetensors,
    to_float32,
    write_safetensors,
)
from qwen3_model.errors import FormatError


def write_raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_safetensors_library_wrote(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([7], np.int64),
        "c": np.zeros((0, 4)),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    file = open_safetensors(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(file.raw(name), value)


def test_the_safetensors_library_reads_what_was_written_in_pieces(tmp_path):
    a = np.arange(12, dtype=np.float32).reshape(4, 3)
    plans = [TensorPlan("a", "F32", (4, 3)), TensorPlan("b", "I32", (2,))]
    pieces = [[a[:2], a[2:].tobytes()], [memoryview(np.array([5, 6], np.int32)).cast("B")]]
    write_safetensors(tmp_path / "x.safetensors", zip(plans, pieces, strict=True), {"format": "pt"})
    read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(read["a"], a)
    np.testing.assert_array_equal(read["b"], [5, 6])


def test_what_was_read_is_a_copy(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(3)}, tmp_path / "x.safetensors")
    file = open_safetensors(tmp_path / "x.safetensors")
    file.raw("a")[0] = 2
    np.testing.assert_array_equal(file.raw("a"), np.ones(3))


def test_pieces_that_do_not_add_up_are_refused(tmp_path):
    with pytest.raises(FormatError, match="a needs 8 bytes, 4 came"):
        write_safetensors(tmp_path / "x", [(TensorPlan("a", "F32", (2,)), [b"1234"])], {})


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, b"1234", "is cut short: the header describes"),
        ({"a": entry()}, b"1" * 9, "has stray bytes at its end"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, b"1" * 12, "tensor b overlaps a"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, b"1" * 20, "tensor b leaves a gap after a"),
        ({"a": entry(shape=(3,))}, b"1" * 8, r"a of F32 \[3\] needs 12 bytes, its offsets span 8"),
        ({"a": entry(dtype="F99")}, b"1" * 8, "a has the unknown dtype 'F99'"),
        ({"a": entry(dtype=[])}, b"1" * 8, r"a has the unknown dtype \[\]"),
        ({"a": entry(shape=(-2,))}, b"1" * 8, "which are no counts"),
        ({"a": entry(shape=(True, 2))}, b"1" * 8, "which are no counts"),
        ({"a": {"dtype": "F32"}}, b"", "entry of a must have dtype, shape and data_offsets"),
        ({"__metadata__": {"x": 1}}, b"", "__metadata__ must map texts to texts"),
        (b"[1]", b"", "the header is no JSON object"),
        (b'{"a"', b"", "the header is not valid JSON"),
        (b'{"a": {}, "a": {}}', b"", "key 'a' occurs twice"),
        (b"\xff\xfe", b"", "the header is not valid JSON"),
    ],
)
def test_a_damaged_header_is_named(tmp_path, header, data, message):
    path = write_raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(FormatError, match=message) as caught:
        open_safetensors(path)
    assert str(path) in str(caught.value)


def test_a_header_length_beyond_the_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(FormatError, match="its header claims 1099511627776 of 10 bytes"):
        open_safetensors(path)
    path.write_bytes(b"1234")
    with pytest.raises(FormatError, match="4 bytes are too few"):
        open_safetensors(path)


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan_and_infinity():
    bits = np.array(
        [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0xFF800000, 0x7F800001], np.uint32
    )
    rounded = from_float32(bits.view(np.float32), "BF16")
    assert rounded[:6].tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0xFF80]
    assert np.isnan(to_float32(rounded, "BF16")[6])


def test_every_bfloat16_survives_the_round_trip():
    every = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    again = from_float32(to_float32(every, "BF16"), "BF16")
    is_nan = (every & 0x7FFF) > 0x7F80
    np.testing.assert_array_equal(again[~is_nan], every[~is_nan])
    assert np.isnan(to_float32(again[is_nan], "BF16")).all()


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


MANY = b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}'
# The rules of the reference implementation and the cases of its own tests, made again here.
STRANGE_FILES = {
    "nothing": b"",
    "seven bytes": b"\0" * 7,
    "no header": file_of(b""),
    "a length beyond the file": file_of({}, length=3),
    "the largest length": file_of({}, length=2**64 - 1),
    "a length over 100 MB": file_of(b"{}" + b" " * 100, length=100_000_001),
    "a header that is no object": file_of(b"[1, 2]"),
    "a header that is a number": file_of(b"1"),
    "a header in UTF-16": file_of('{"a":1}'.encode("utf-16-le")),
    "a header that is no UTF-8": file_of(b'{"\xff":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
    "a half character in a name": file_of(b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
    "a half character in metadata": file_of(b'{"__metadata__":{"a":"\\ud800"}}'),
    "metadata that are numbers": file_of({"__metadata__": {"a": 1}}),
    "metadata in metadata": file_of({"__metadata__": {"a": {"b": "c"}}}),
    "a cut header": file_of(b'{"a":{"dtype":"F32"'),
    "two headers": file_of(b"{}{}"),
    "a comma too many": file_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],}}', b"1" * 8),
    "a tab in a name": file_of(b'{"a\t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"1" * 8),
    "NaN as a size": file_of(MANY % b"NaN", b"1" * 8),
    "a fraction as a size": file_of(MANY % b"2.0", b"1" * 8),
    "minus nothing as a size": file_of(MANY % b"2,-0", b""),
    "a negative size": file_of(MANY % b"-2", b"1" * 8),
    "a size in a text": file_of(MANY % b'"2"', b"1" * 8),
    "a size beyond 64 bits": file_of(MANY % b"18446744073709551616", b"1" * 8),
    "sizes whose product wraps": file_of(MANY % b"2,18446744073709551615", b"1" * 8),
    "sizes that wrap to what is there": file_of(MANY % b"4611686018427387906,1", b"1" * 8),
    "too few bytes": file_of({"a": entry()}, b"1" * 7),
    "too many bytes": file_of({"a": entry()}, b"1" * 9),
    "a shape of more": file_of({"a": entry(shape=(3,))}, b"1" * 8),
    "a shape of less": file_of({"a": entry(shape=(1,))}, b"1" * 8),
    "an overlap": file_of({"a": entry(), "b": entry(offsets=(4, 12))}, b"1" * 12),
    "a gap": file_of({"a": entry(), "b": entry(offsets=(12, 20))}, b"1" * 20),
    "a gap at the beginning": file_of({"a": entry(offsets=(8, 16))}, b"1" * 16),
    "offsets backwards": file_of({"a": entry(offsets=(8, 0))}, b"1" * 8),
    "the same data twice": file_of({"a": entry(), "b": entry()}, b"1" * 8),
    "one offset": file_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}', b"1" * 8),
    "three offsets": file_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}}', b"1" * 8),
    "no shape": file_of(b'{"a":{"dtype":"F32","data_offsets":[0,8]}}', b"1" * 8),
    "no dtype": file_of(b'{"a":{"shape":[2],"data_offsets":[0,8]}}', b"1" * 8),
    "an unknown dtype": file_of({"a": entry(dtype="F33")}, b"1" * 8),
    "a dtype in small letters": file_of({"a": entry(dtype="f32")}, b"1" * 8),
    "null as a tensor": file_of(b'{"a":null}'),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE_FILES)
def test_what_the_reference_refuses_is_refused(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(STRANGE_FILES[name])
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(STRANGE_FILES[name])
    with pytest.raises(FormatError) as found:
        open_safetensors(tmp_path / "x.safetensors")
    assert "\n" not in str(found.value)


def test_a_header_begins_with_a_brace_as_the_format_says(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(file_of(b" {}"))
    with pytest.raises(FormatError, match="the header is no JSON object"):
        open_safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "raw",
    [
        file_of(b"{}"),
        file_of(b"{}      "),
        file_of({"__metadata__": {}}),
        file_of({"a": entry(shape=(), offsets=(0, 4))}, b"1" * 4),
        file_of({"a": entry(shape=(0, 2**40), offsets=(0, 0))}),
        file_of({"b": entry(offsets=(8, 16)), "a": entry()}, b"1" * 16),
        file_of({"": entry(), "\u9b3c\u0000": entry(shape=(0,), offsets=(8, 8))}, b"1" * 8),
    ],
)
def test_what_the_reference_reads_is_read(tmp_path, raw):
    (tmp_path / "x.safetensors").write_bytes(raw)
    wanted = {name: (held["dtype"], held["shape"]) for name, held in safetensors.deserialize(raw)}
    found = open_safetensors(tmp_path / "x.safetensors").tensors
    assert {name: (info.dtype, list(info.shape)) for name, info in found.items()} == wanted


def test_a_truth_value_other_than_0_and_1_is_refused(tmp_path):
    path = write_raw(tmp_path / "x.safetensors", {"a": entry("BOOL", (3,), (0, 3))}, b"\0\1\1")
    assert open_safetensors(path).raw("a").tolist() == [False, True, True]
    write_raw(path, {"a": entry("BOOL", (3,), (0, 3))}, b"\0\1\2")
    with pytest.raises(FormatError, match="a of BOOL has the byte 2, where only 0 and 1 are truth values"):
        open_safetensors(path)


def test_a_large_header_is_read_in_one_pass(tmp_path):
    names = {f"t{number}": entry(shape=(0,), offsets=(0, 0)) for number in range(100_000)}
    path = write_raw(tmp_path / "x.safetensors", names)
    started_s = time.process_time()
    assert len(open_safetensors(path).tensors) == 100_000
    assert time.process_time() - started_s < 10
