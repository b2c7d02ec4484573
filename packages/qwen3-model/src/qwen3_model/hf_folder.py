"""A Hugging Face model folder: `config.json` and safetensors files, checked before anything is read.

The index is `model.safetensors.index.json`: {"metadata": {"total_size"}, "weight_map": {tensor: file}}.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from qwen3_model.byte_writer import Buffer
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import FormatError, WeightError
from qwen3_model.safetensors_file import (
    FLOAT_DTYPES,
    SafetensorsFile,
    TensorInfo,
    TensorPlan,
    open_safetensors,
    write_safetensors,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TIED_HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
MAX_NAMED = 8
COMPARE_ROWS = 4096


class HfFolder:
    """An opened folder whose tensors are those of its config, each in exactly one file."""

    def __init__(self, path: Path, config: Qwen3Config, tensors: dict[str, SafetensorsFile]) -> None:
        self.path, self.config, self.tensors = path, config, tensors

    def info(self, name: str) -> TensorInfo:
        """Return the dtype, shape and place of a tensor."""
        return self.tensors[name].tensors[name]

    def raw(self, name: str) -> np.ndarray:
        """Return a mapped, read-only view of a tensor; BF16 comes as uint16."""
        return self.tensors[name].raw(name)

    def release(self, name: str) -> None:
        """Take a tensor's mapped pages out of this process's memory again."""
        self.tensors[name].release(name)

    def float32(self, name: str) -> np.ndarray:
        """Return a tensor widened to float32."""
        return self.tensors[name].float32(name)


def open_hf_folder(path: Path) -> HfFolder:
    """Open a folder and check its tensors' names, shapes and dtypes against its config.

    A tied model's `lm_head.weight` is left out, as it is in released folders, when it equals the embedding.

    Raises:
        ConfigError: config.json is missing or describes another model.
        FormatError: A file or the index is missing or damaged.
        WeightError: Tensors are missing, unexpected, or of the wrong shape or dtype; all are named.
    """
    config = Qwen3Config.from_dir(path)
    tensors = open_hf_tensors(path)
    problems = list(tied_head_problems(config, tensors)) + list(weight_problems(config, tensors))
    if problems:
        raise WeightError(f"{path}: {'; '.join(problems)}")
    return HfFolder(path, config, tensors)


def open_hf_tensors(path: Path) -> dict[str, SafetensorsFile]:
    """Open every weights file of a folder; return the file of each tensor.

    Raises:
        FormatError: There are no weights, or the index and the files disagree.
    """
    if not path.is_dir():
        raise FormatError(f"{path} is no folder; give a Hugging Face model folder")
    index_path, single_path = path / INDEX_FILE, path / SINGLE_FILE
    if index_path.exists():
        return _open_indexed(path, _read_index(index_path))
    if not single_path.exists():
        raise FormatError(
            f"{path} has neither {SINGLE_FILE} nor {INDEX_FILE}; give a folder with safetensors weights"
        )
    file = open_safetensors(single_path)
    return dict.fromkeys(file.tensors, file)


def _read_index(index_path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{index_path} is no index: {type(error).__name__} {error}") from None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise FormatError(f"{index_path}: weight_map must map tensor names to file names")
    if outside := sorted(name for name in set(weight_map.values()) if Path(name).name != name):
        raise FormatError(f"{index_path} names files outside of its folder: {_some(outside)}")
    return weight_map


def _open_indexed(path: Path, weight_map: dict[str, str]) -> dict[str, SafetensorsFile]:
    names = sorted(set(weight_map.values()))
    if absent := [name for name in names if not (path / name).exists()]:
        raise FormatError(f"{path / INDEX_FILE} names files that are not there: {_some(absent)}")
    files = {name: open_safetensors(path / name) for name in names}
    lost = sorted(tensor for tensor, name in weight_map.items() if tensor not in files[name].tensors)
    if lost:
        raise FormatError(f"{path / INDEX_FILE} places tensors in files that lack them: {_some(lost)}")
    extra = sorted(
        f"{tensor} in {name}"
        for name, file in files.items()
        for tensor in file.tensors
        if weight_map.get(tensor) != name
    )
    if extra:
        raise FormatError(f"{path / INDEX_FILE} does not list, or lists elsewhere: {_some(extra)}")
    return {tensor: files[name] for tensor, name in weight_map.items()}


def tied_head_problems(config: Qwen3Config, tensors: dict[str, SafetensorsFile]) -> Iterator[str]:
    """Drop the head of a tied model from `tensors`; yield a sentence when it differs from the embedding."""
    if not config.tie_word_embeddings or TIED_HEAD not in tensors or EMBEDDING not in tensors:
        return
    head, embedding = tensors[TIED_HEAD].raw(TIED_HEAD), tensors[EMBEDDING].raw(EMBEDDING)
    starts = range(0, len(head), COMPARE_ROWS)
    if head.shape == embedding.shape and all(
        np.array_equal(head[i : i + COMPARE_ROWS], embedding[i : i + COMPARE_ROWS]) for i in starts
    ):
        del tensors[TIED_HEAD]
    else:
        yield "config.json ties the head to the embedding, but lm_head.weight differs from it"
        del tensors[TIED_HEAD]


def weight_problems(config: Qwen3Config, tensors: dict[str, SafetensorsFile]) -> Iterator[str]:
    """Yield a sentence for each kind of disagreement between `config` and the tensors of a folder."""
    shapes = config.weight_shapes()
    if missing := [name for name in shapes if name not in tensors]:
        yield f"missing {_some(missing)}"
    if unexpected := sorted(tensors.keys() - shapes.keys()):
        yield f"unexpected {_some(unexpected)}"
    for name, shape in shapes.items():
        if name not in tensors:
            continue
        info = tensors[name].tensors[name]
        if info.shape != shape:
            yield f"{name} has shape {info.shape}, config.json says {shape}"
        if info.dtype not in FLOAT_DTYPES:
            yield f"{name} has dtype {info.dtype}, expected one of {', '.join(FLOAT_DTYPES)}"


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


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"
