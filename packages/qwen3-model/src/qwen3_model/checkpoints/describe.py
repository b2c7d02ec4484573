"""What `qwen3-model info` says of a released size, a config or a folder: parameters by part, bytes."""

from collections import Counter
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import NotRequired, TypedDict

from qwen3_model.checkpoints.hf_folder import INDEX_FILE, SINGLE_FILE, open_hf_tensors
from qwen3_model.config import SIZES, Qwen3Config, find_size
from qwen3_model.errors import ConfigError

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class Facts(TypedDict):
    """What `info --json` prints."""

    config: dict[str, object]
    parameters: dict[str, int]
    weight_bytes: dict[str, int]
    cache_bytes_per_token: dict[str, int]
    stored_bytes: NotRequired[dict[str, int]]
    """Sizes of the files of a folder that has weights."""


def find_config(source: str) -> Qwen3Config:
    """Return the config that `source` names: one of the six sizes, a config.json, or a folder that has one.

    A path that exists is taken before a longer spelling of a size, such as Qwen3-0.6B.

    Raises:
        ConfigError: It is none of these, or the config cannot be read.
    """
    if source in SIZES:
        return SIZES[source]
    path = Path(source)
    if path.is_dir():
        return Qwen3Config.from_dir(path)
    if not path.exists():
        if size := find_size(source):
            return SIZES[size]
        raise ConfigError(
            f"{source} is no path and no size; give a folder, a config.json or one of {', '.join(SIZES)}"
        )
    return Qwen3Config.from_file(path)


def describe(source: str) -> Facts:
    """Return the facts about `source`.

    Units: parameters are counts of weights, a tied head counted once; bytes are bytes.
    """
    config = find_config(source)
    counts = Counter({"embedding": 0, "layers": 0, "final norm": 0, "head": 0})
    for name, shape in config.weight_shapes().items():
        counts[_part(name)] += prod(shape)
    total = config.num_parameters()
    cached_per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    facts: Facts = {
        "config": asdict(config),
        "parameters": {**counts, "total": total},
        "weight_bytes": {dtype: total * size for dtype, size in BYTES.items()},
        "cache_bytes_per_token": {dtype: cached_per_token * size for dtype, size in BYTES.items()},
    }
    path = Path(source)
    if (
        source not in SIZES
        and path.is_dir()
        and any((path / name).exists() for name in (SINGLE_FILE, INDEX_FILE))
    ):
        stored: Counter[str] = Counter()
        for name, file in open_hf_tensors(path).items():
            stored[file.tensors[name].dtype] += file.tensors[name].size_bytes
        facts["stored_bytes"] = dict(stored)
    return facts


def to_text(facts: Facts) -> str:
    """Lay out what `describe` found for people."""
    config, parameters = facts["config"], facts["parameters"]
    lines = [f"{name:<24} {value}" for name, value in config.items()]
    lines += ["", f"{'parameters':<24} {parameters['total']:,}"]
    lines += [f"  {part:<22} {count:,}" for part, count in parameters.items() if part != "total" and count]
    lines += ["", "bytes of the weights"]
    lines += [f"  as {dtype:<19} {_gigabytes(size)}" for dtype, size in facts["weight_bytes"].items()]
    if "stored_bytes" in facts:
        lines += [
            f"  stored as {dtype:<12} {_gigabytes(size)}" for dtype, size in facts["stored_bytes"].items()
        ]
    lines += ["", "bytes of keys and values per token of context"]
    lines += [f"  as {dtype:<19} {size:,}" for dtype, size in facts["cache_bytes_per_token"].items()]
    return "\n".join(lines)


def _part(name: str) -> str:
    if name.startswith("model.layers."):
        return "layers"
    return {"model.embed_tokens.weight": "embedding", "lm_head.weight": "head"}.get(name, "final norm")


def _gigabytes(size: int) -> str:
    return f"{size:,} ({size / 1e9:.2f} GB)" if size >= 1e7 else f"{size:,}"
