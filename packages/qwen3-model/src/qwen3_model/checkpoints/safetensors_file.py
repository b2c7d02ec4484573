"""Read and write safetensors files as bytes, without any framework.

Format: 8 bytes of little-endian header length, a JSON header, the data (README of safetensors).
Nothing but the header is read until data are asked for.

Written here, since the package safetensors reads no bfloat16 into numpy, and writes only what is in memory
all at once.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.byte_writer import Buffer, ByteWriter
from qwen3_model.checkpoints.source_file import SourceFile, open_source
from qwen3_model.command.plain_text import is_text
from qwen3_model.command.small_files import LFS_POINTER_BYTES, refuse_lfs_pointer
from qwen3_model.errors import FormatError

# numpy has no bfloat16 or float8, whose bits travel as unsigned integers.
NUMPY_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": "?", "U8": "u1", "I8": "i1", "F8_E4M3": "u1", "F8_E5M2": "u1", "U16": "<u2", "I16": "<i2",
        "F16": "<f2", "BF16": "<u2", "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8",
        "F64": "<f8",
    }.items()
}  # fmt: skip
FLOAT_DTYPES = ("BF16", "F16", "F32")
# The reference implementation refuses longer headers.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 32
"""numpy has no more."""
BOOLS_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies in its file."""

    name: str
    dtype: str
    """Element type in the format's spelling, such as BF16."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    end: int
    """Byte after the last one."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.start


class SafetensorsFile:
    """An opened file: its metadata, where its tensors lie, and their data."""

    def __init__(self, source: SourceFile, metadata: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
        self.source, self.metadata, self.tensors = source, metadata, tensors

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.source.path

    def raw(self, name: str) -> np.ndarray:
        """Return a tensor's data, a copy; BF16 comes as uint16, float8 as uint8.

        Raises:
            FormatError: The file has no tensor `name`, has become shorter, or cannot be read.
        """
        info = self.tensors.get(name)
        if info is None:
            raise FormatError(f"{self.path} has no tensor {name}")
        data = self.source.read(info.start, info.size_bytes)
        return data.view(NUMPY_DTYPES[info.dtype]).reshape(info.shape)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return bytes `start` to `stop` of a tensor's data, a copy."""
        return self.source.read(self.tensors[name].start + start, stop - start)

    def close(self) -> None:
        """Give the descriptor up, which keeps the space of a deleted file; a later read opens it again."""
        self.source.close()

    def float32(self, name: str) -> np.ndarray:
        """Return a copy of a float tensor, widened to float32 exactly.

        Raises:
            FormatError: There is no such tensor or it holds no float.
        """
        info = self.tensors.get(name)
        if info is None:
            raise FormatError(f"{self.path} has no tensor {name}")
        if info.dtype not in FLOAT_DTYPES:
            raise FormatError(
                f"{self.path}: tensor {name} is {info.dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
            )
        return to_float32(self.raw(name), info.dtype)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Read and check the header of `path`.

    Raises:
        FormatError: The header is damaged or does not fit the file; the message says how.
        OSError: The file cannot be read.
    """
    source = open_source(path)
    file_bytes = source.size_bytes
    header_bytes = _header_length(source)
    header = _parse_header(path, source.read(8, header_bytes).tobytes())
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{path}: __metadata__ must map texts to texts")
    if not all(map(is_text, (*metadata, *metadata.values()))):
        raise FormatError(f"{path}: __metadata__ has a text that is no Unicode")
    data_start = 8 + header_bytes
    tensors = {name: _tensor_info(path, name, entry, data_start) for name, entry in header.items()}
    _check_cover(path, tensors.values(), data_start, file_bytes)
    for info in tensors.values():
        if info.dtype == "BOOL":
            _check_bools(source, info)
    return SafetensorsFile(source, metadata, tensors)


def _header_length(source: SourceFile) -> int:
    path, file_bytes = source.path, source.size_bytes
    if file_bytes < 8:
        raise FormatError(f"{path} is no safetensors file: {file_bytes} bytes are too few for a header")
    head = source.read(0, min(file_bytes, LFS_POINTER_BYTES)).tobytes()
    refuse_lfs_pointer(path, head, "the weights")
    (length,) = struct.unpack("<Q", head[:8])
    if length > MAX_HEADER_BYTES or 8 + length > file_bytes:
        raise FormatError(
            f"{path} is damaged or no safetensors file: its header claims {length} of {file_bytes} bytes"
        )
    return int(length)


def _parse_header(path: Path, text: bytes) -> dict[str, object]:
    try:
        header = HEADER.decode(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the header is not valid JSON: {error}") from None
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise FormatError(f"{path}: the header is no JSON object")
    return header


def _count(digits: str) -> int:
    return -1 if digits == "-0" else int(digits)  # to the reference no count either


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"key {name!r} occurs twice")
        result[name] = value
    return result


HEADER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_int=_count)


def _tensor_info(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    if not is_text(name):
        raise FormatError(f"{path}: the header has the name {name!r}, which is no Unicode text")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{path}: the header's entry of {name} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPES:
        raise FormatError(f"{path}: {name} has the unknown dtype {dtype!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise FormatError(
            f"{path}: {name} has shape {shape!r} and data_offsets {offsets!r}, which are no counts"
        )
    if len(shape) > MAX_DIMENSIONS:
        raise FormatError(f"{path}: {name} has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    if math.prod(size for size in shape if size) >= 2**63:
        raise FormatError(f"{path}: {name} has shape {shape}, more elements than can be counted")
    needed = math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
    given = offsets[1] - offsets[0]
    if given != needed:
        raise FormatError(f"{path}: {name} of {dtype} {shape} needs {needed} bytes, its offsets span {given}")
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _check_bools(source: SourceFile, info: TensorInfo) -> None:
    """Refuse truth values other than 0 and 1, which programs take for different things."""
    for start in range(info.start, info.end, BOOLS_AT_ONCE):
        found = source.read(start, min(BOOLS_AT_ONCE, info.end - start))
        if (wrong := np.flatnonzero(found > 1)).size:
            raise FormatError(
                f"{source.path}: {info.name} of BOOL has the byte {found[wrong[0]]}, where only 0 and 1 are "
                "truth values; the file is damaged"
            )


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_cover(path: Path, tensors: Iterable[TensorInfo], data_start: int, file_bytes: int) -> None:
    position, previous = data_start, "the header"
    for info in sorted(tensors, key=lambda info: (info.start, info.end)):
        if info.start != position:
            kind = "overlaps" if info.start < position else "leaves a gap after"
            raise FormatError(f"{path}: tensor {info.name} {kind} {previous}")
        position, previous = info.end, info.name
    if position != file_bytes:
        kind = "is cut short" if position > file_bytes else "has stray bytes at its end"
        raise FormatError(f"{path} {kind}: the header describes {position} bytes, the file has {file_bytes}")


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


def encode_header(plans: Iterable[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    """Return the length and the JSON header, padded to 8 bytes, of a file with `plans` in order."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for plan in plans:
        offsets = [position, position + plan.size_bytes]
        header[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_safetensors(
    path: Path, tensors: Iterable[tuple[TensorPlan, Iterable[Buffer]]], metadata: Mapping[str, str]
) -> None:
    """Write a file of tensors whose data come in pieces, so that no tensor has to be in memory whole.

    Not atomic by itself: give it a temporary name, or use `files.write_atomically`.

    Raises:
        FormatError: The pieces of a tensor do not add up to its size.
    """
    entries = list(tensors)
    with ByteWriter(path) as writer:
        writer.write(encode_header([plan for plan, _ in entries], metadata))
        for plan, pieces in entries:
            written = sum(map(writer.write, pieces))
            if written != plan.size_bytes:
                raise FormatError(f"{path}: {plan.name} needs {plan.size_bytes} bytes, {written} came")


def to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Widen raw F32, F16 or BF16 (uint16) data to float32; exact. F32 is returned as it is."""
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return raw.astype(np.float32, copy=False)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 to F32, F16 or BF16 (as uint16), to nearest with ties to even; NaN stays NaN."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(NUMPY_DTYPES[dtype], copy=False)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, (bits >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40), rounded)
