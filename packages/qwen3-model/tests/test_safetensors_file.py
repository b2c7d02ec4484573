import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from qwen3_model.errors import FormatError
from qwen3_model.safetensors_file import (
    TensorPlan,
    from_float32,
    open_safetensors,
    to_float32,
    write_safetensors,
)


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


def test_mapped_data_cannot_be_written(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(3)}, tmp_path / "x.safetensors")
    view = open_safetensors(tmp_path / "x.safetensors").raw("a")
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2


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
