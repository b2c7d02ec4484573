"""The strategy of a whole checkpoint: for each pipeline stage, how its tensors are cut.

Accepts what people have: a folder of rank files, one rank file (without pipeline), or a file that merges
stages, whose names are `<stage>-<name>`.
"""

import re
from pathlib import Path

from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.strategy import TensorLayout, merge_strategies, read_strategy

Stages = dict[int, dict[str, TensorLayout]]
MERGED_NAME = re.compile(r"(\d+)-(.+)")


def read_stages(source: Path) -> tuple[Stages, list[str]]:
    """Return the layouts of each stage, and notes on files that were not needed.

    Raises:
        ConfigError: `source` is absent or holds no strategy file.
        FormatError: A file is damaged, or ranks of one stage disagree.
    """
    if source.is_file():
        return _read_file(source), []
    if not source.is_dir():
        raise ConfigError(
            f"{source} does not exist; give the folder with ckpt_strategy_rank_*.ckpt or one such file"
        )
    paths = sorted(source.glob("*.ckpt"))
    if not paths:
        raise ConfigError(f"{source} holds no strategy file (*.ckpt)")
    stages: Stages = {}
    owners: dict[int, Path] = {}
    merged = []
    for path in paths:
        found = _read_file(path)
        if _is_merged(path):
            merged.append((path, found))
            continue
        for stage, layouts in found.items():
            if stage in stages and stages[stage] != layouts:
                raise FormatError(
                    f"{path} and {owners[stage]} disagree about stage {stage}; one is of another run"
                )
            stages[stage], owners[stage] = layouts, path
    return _with_merged(stages, merged)


def merged_strategy(source: Path) -> bytes:
    """Return one file's contents for all stages of `source`, which `read_stages` has accepted."""
    paths = [source] if source.is_file() else sorted(source.glob("*.ckpt"))
    bodies = {read_strategy(path)[0]: path.read_bytes() for path in paths if not _is_merged(path)}
    return merge_strategies(bodies) if bodies else paths[0].read_bytes()


def _with_merged(stages: Stages, merged: list[tuple[Path, Stages]]) -> tuple[Stages, list[str]]:
    notes = []
    for path, found in merged:
        if not stages:
            stages = found
        elif any(stages.get(stage) != layouts for stage, layouts in found.items()):
            raise FormatError(
                f"{path} disagrees with the rank files beside it; remove the one that is out of date"
            )
        else:
            notes.append(f"{path} repeats the rank files beside it and was not needed")
    return stages, notes


def _read_file(path: Path) -> Stages:
    stage, layouts = read_strategy(path)
    if not layouts:
        raise FormatError(f"{path} describes no tensor")
    if not _is_merged_names(layouts):
        return {stage: layouts}
    stages: Stages = {}
    for name, layout in layouts.items():
        match = MERGED_NAME.fullmatch(name)
        if match:
            stages.setdefault(int(match[1]), {})[match[2]] = layout
    return stages


def _is_merged(path: Path) -> bool:
    return _is_merged_names(read_strategy(path)[1])


def _is_merged_names(layouts: dict[str, TensorLayout]) -> bool:
    return all(MERGED_NAME.fullmatch(name) for name in layouts)
