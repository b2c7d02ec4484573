"""Weights wherever they are: a run of any layout, a merged checkpoint, a Hugging Face folder, one file."""

import json
from pathlib import Path

from qwen3_model.checkpoint_files import checkpoint_files
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.hf_folder import INDEX_FILE, SINGLE_FILE, open_hf_tensors
from qwen3_model.rank_tensors import RankTensors, open_rank_tensors, open_whole_tensors
from qwen3_model.safetensors_file import open_safetensors

NAME_MAP = "param_name_map.json"
"""Beside the parts of a merged checkpoint: which tensor is in which."""


def open_weight_files(source: Path, strategy: Path | None = None) -> RankTensors:
    """Open the weights at `source`; nothing but headers is read.

    Args:
        source: A run's folder or its `checkpoint` folder (the newest step that is whole on every rank), a
            file of a rank in it (that step), a merged checkpoint or a folder above it, a Hugging Face folder,
            or a file with whole tensors.
        strategy: Of a distributed checkpoint, when its strategy files are not beside it: their folder, or the
            file that merges them.

    Raises:
        ConfigError: There is nothing, or no step is whole, or a strategy file is missing.
        FormatError: A file is damaged, or files and strategies do not fit.
    """
    if not source.exists():
        raise ConfigError(f"{source} does not exist; give a run, a checkpoint or a folder with weights")
    if source.is_file() or is_distributed(source):
        return open_rank_tensors(checkpoint_files(source), strategy)
    if any((source / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return open_whole_tensors({id(file): file for file in open_hf_tensors(source).values()}.values())
    return open_whole_tensors(open_safetensors(path) for path in merged_files(source))


def is_distributed(source: Path) -> bool:
    """Say whether a folder holds `rank_0`, ..., itself or in its `checkpoint` folder."""
    return any(next(folder.glob("rank_[0-9]*/"), None) for folder in (source, source / "checkpoint"))


def merged_files(source: Path) -> list[Path]:
    """Return the parts of the one merged checkpoint in `source` or up to two folders below it.

    Raises:
        ConfigError: There is none, or more than one.
        FormatError: Its map of names is damaged, or names a file that is not there.
    """
    maps = [path for depth in ("", "*/", "*/*/") for path in sorted(source.glob(f"{depth}{NAME_MAP}"))]
    if len(maps) != 1:
        found = f"{len(maps)} files {NAME_MAP}" if maps else f"no {SINGLE_FILE}, {NAME_MAP} or rank_0"
        raise ConfigError(f"{source} has {found}; give the folder with the weights")
    try:
        told = json.loads(maps[0].read_text(encoding="utf-8"))
        names = sorted(set(told.get("weight_map", told).values()))
    except (ValueError, AttributeError, TypeError) as error:
        raise FormatError(f"{maps[0]} is no map of tensors to files: {error}") from None
    paths = [maps[0].parent / name for name in names]
    if absent := [path.name for path in paths if path.parent != maps[0].parent or not path.is_file()]:
        raise FormatError(f"{maps[0]} names files that are not there: {', '.join(absent)}")
    return paths
