"""A Hugging Face model folder: `config.json` and safetensors files, checked before anything is read.

The index is `model.safetensors.index.json`: {"metadata": {"total_size"}, "weight_map": {tensor: file}}.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.byte_writer import Buffer
from qwen3_model.checkpoints.fused import FusedLayout
from qwen3_model.checkpoints.model_weights import find_weights, some
from qwen3_model.checkpoints.rows import equal_rows, from_file
from qwen3_model.checkpoints.safetensors_file import (
    SafetensorsFile,
    TensorPlan,
    open_safetensors,
    to_float32,
    write_safetensors,
)
from qwen3_model.checkpoints.strangers import WANTED, explain
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.command.files import is_file_name
from qwen3_model.command.narrow import as_section, at_key
from qwen3_model.command.small_files import INDEX_BYTES, read_small_text
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import FormatError, WeightError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class HfFolder:
    """An opened folder whose tensors are those of its config."""

    def __init__(self, path: Path, config: Qwen3Config, tensors: Tensors) -> None:
        self.path, self.config, self.tensors = path, config, tensors

    def info(self, name: str) -> TensorPlan:
        """Return the dtype and shape of a tensor."""
        return self.tensors.lazy[name].plan

    def raw(self, name: str) -> np.ndarray:
        """Return a tensor, read whole; BF16 comes as uint16."""
        return self.tensors.read(name)[1]

    def float32(self, name: str) -> np.ndarray:
        """Return a tensor widened to float32."""
        return to_float32(self.raw(name), self.info(name).dtype)


def open_hf_folder(path: Path) -> HfFolder:
    """Open a folder and check its tensors' names, shapes and dtypes against its config.

    See `model_weights` for what is put right and what is left out.

    Raises:
        ConfigError: config.json is missing or describes another model.
        FormatError: A file or the index is missing or damaged.
        WeightError: Tensors are missing, unexpected, or of the wrong shape or dtype; all are named.
    """
    config = Qwen3Config.from_dir(path)
    files = open_hf_tensors(path)
    tensors = {name: from_file(file, name) for name, file in files.items()}
    weights, problems = find_weights(tensors, config, FusedLayout())
    if problems:
        raise WeightError(f"{path}: {some(problems, '; ')}")
    return HfFolder(path, config, Tensors(next(iter(files.values())), weights))


def open_hf_tensors(path: Path) -> dict[str, SafetensorsFile]:
    """Open every weights file of a folder; return the file of each tensor.

    Raises:
        FormatError: There are no weights, or the index and the files disagree, or a single file beside the
            index has other weights: some readers take that, others the index.
    """
    if not path.is_dir():
        raise FormatError(f"{path} is no folder; give a Hugging Face model folder")
    index_path, single_path = path / INDEX_FILE, path / SINGLE_FILE
    if index_path.exists():
        tensors = _open_indexed(path, _read_index(index_path))
        if single_path.exists() and all(file.path != single_path for file in tensors.values()):
            _compare_single(open_safetensors(single_path), tensors)
    elif single_path.exists():
        file = open_safetensors(single_path)
        tensors = dict.fromkeys(file.tensors, file)
    else:
        found = explain(path) or f"has neither {SINGLE_FILE} nor {INDEX_FILE}; {WANTED}"
        raise FormatError(f"{path} {found}")
    if not tensors:
        raise FormatError(f"{path} has weights files without a tensor")
    return tensors


def _compare_single(single: SafetensorsFile, indexed: dict[str, SafetensorsFile]) -> None:
    """Refuse a single file whose weights are not those of the index."""
    different = sorted(single.tensors.keys() ^ indexed.keys())
    for name, file in indexed.items():
        if different:
            break
        a, b = from_file(single, name), from_file(file, name)
        if a.plan != b.plan or not equal_rows(a.rows, b.rows):
            different.append(name)
    if different:
        raise FormatError(
            f"{single.path} and the files of {INDEX_FILE} beside it hold different weights, such as "
            f"{different[0]}; transformers would load the first, vLLM the others: remove those that are out "
            "of date"
        )


def _read_index(index_path: Path) -> dict[str, str]:
    try:
        index: object = json.loads(read_small_text(index_path, INDEX_BYTES))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{index_path} is no index: {error}") from None
    try:
        stated = at_key(as_section(index), "weight_map", as_section)
    except FormatError as error:
        raise FormatError(f"{index_path} is no index: {error}") from None
    weight_map = {tensor: name for tensor, name in stated.items() if isinstance(name, str)}
    if len(weight_map) < len(stated):
        raise FormatError(f"{index_path}: weight_map must map tensor names to file names")
    outside = {name for name in weight_map.values() if not is_file_name(name)}
    if outside:
        raise FormatError(f"{index_path} names files outside of its folder: {some(sorted(outside))}")
    return weight_map


def _open_indexed(path: Path, weight_map: dict[str, str]) -> dict[str, SafetensorsFile]:
    names = sorted(set(weight_map.values()))
    if absent := [name for name in names if not (path / name).exists()]:
        raise FormatError(f"{path / INDEX_FILE} names files that are not there: {some(absent)}")
    files = {name: open_safetensors(path / name) for name in names}
    lost = sorted(tensor for tensor, name in weight_map.items() if tensor not in files[name].tensors)
    if lost:
        raise FormatError(f"{path / INDEX_FILE} places tensors in files that lack them: {some(lost)}")
    extra = sorted(
        f"{tensor} in {name}"
        for name, file in files.items()
        for tensor in file.tensors
        if weight_map.get(tensor) != name
    )
    if extra:
        raise FormatError(f"{path / INDEX_FILE} does not list, or lists elsewhere: {some(extra)}")
    return {tensor: files[name] for tensor, name in weight_map.items()}


def plan_shards(plans: Iterable[TensorPlan], max_shard_bytes: int) -> list[list[TensorPlan]]:
    """Split tensors, in their order, into files of at most `max_shard_bytes` (one tensor at the least)."""
    shards: list[list[TensorPlan]] = []
    room = -1
    for plan in plans:
        if not shards or plan.size_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(plan)
        room -= plan.size_bytes
    return shards


def write_hf_weights(
    path: Path,
    tensors: Iterable[tuple[TensorPlan, Iterable[Buffer]]],
    max_shard_bytes: int = 5_000_000_000,
) -> list[Path]:
    """Write `model.safetensors`, or numbered files with an index, into the existing folder `path`.

    Not atomic by itself: let `files.output_directory` make the folder.

    Returns:
        The weights files, in order.
    """
    pieces = {plan: data for plan, data in tensors}
    shards = plan_shards(pieces, max_shard_bytes)
    names = shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(path / name, [(plan, pieces[plan]) for plan in shard], {"format": "pt"})
    if len(shards) > 1:
        (path / INDEX_FILE).write_text(encode_index(names, shards), encoding="utf-8")
    return [path / name for name in names]


def shard_names(count: int) -> list[str]:
    """Return the file names of a model in `count` files."""
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def encode_index(names: list[str], shards: list[list[TensorPlan]]) -> str:
    """Return the text of the index for tensors in files."""
    weight_map = {plan.name: name for name, shard in zip(names, shards, strict=True) for plan in shard}
    total = sum(plan.size_bytes for shard in shards for plan in shard)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
