"""The strategy of a whole checkpoint: for each pipeline stage, how its tensors are cut.

Accepts what people have: a folder of rank files, one rank file (without pipeline), or a file that merges
stages, whose names are `<stage>-<name>`; in protobuf (.ckpt) or JSON.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3_model.checkpoints.strategy import TensorLayout, encode_strategy, merge_strategies, read_strategy
from qwen3_model.checkpoints.strategy_json import read_json_strategy
from qwen3_model.command.small_files import INDEX_BYTES, read_small
from qwen3_model.errors import ConfigError, FormatError

Stages = dict[int, dict[str, TensorLayout]]
MERGED_NAME = re.compile(r"(\d+)-(.+)")
MERGED_FILES = ("merged_ckpt_strategy.ckpt", "merge_strategy.ckpt", "merged_ckpt_strategy.json")
"""What mindformers' and MindSpore's own tools call a file that merges the stages."""
JSON_KEY = b'"parallel_layout_item"'
"""What a strategy in JSON has and other JSON files of a run do not."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    stages: Stages
    is_merged: bool
    """Whether its names have the stage as prefix."""


def find_strategy(checkpoint_dir: Path) -> Path | None:
    """Return the strategy of the ranks in `checkpoint_dir`: a folder beside it, or a merged file near it."""
    run_dir = checkpoint_dir.absolute().parent
    folders = [run_dir / "strategy", checkpoint_dir, run_dir, run_dir / "merge_strategy"]
    if _files_in(folders[0]):
        return folders[0]
    return next(
        (path for folder in folders for name in MERGED_FILES if (path := folder / name).is_file()), None
    )


def read_stages(source: Path) -> tuple[Stages, list[str]]:
    """Return the layouts of each stage, and notes on files that were not needed.

    Raises:
        ConfigError: `source` is absent or holds no strategy file.
        FormatError: A file is damaged, or ranks of one stage disagree.
    """
    stages: Stages = {}
    owners: dict[int, Path] = {}
    files = _read_files(source)
    for file in files:
        if file.is_merged:
            continue
        for stage, layouts in file.stages.items():
            if stage in stages and stages[stage] != layouts:
                raise FormatError(
                    f"{file.path} and {owners[stage]} disagree about stage {stage}; one is of another run"
                )
            stages[stage], owners[stage] = layouts, file.path
    return _with_merged(stages, [file for file in files if file.is_merged])


def merged_strategy(source: Path) -> bytes:
    """Return one file's contents for all stages of `source`, which `read_stages` has accepted."""
    files = _read_files(source)
    ranks = [file for file in files if not file.is_merged] or files[:1]
    if any(file.path.suffix == ".json" for file in ranks):
        stages = {stage: layouts for file in ranks for stage, layouts in file.stages.items()}
        return encode_strategy(
            1,
            {
                f"{s}-{name}": (s, layout)
                for s, layouts in sorted(stages.items())
                for name, layout in layouts.items()
            },
        )
    if ranks[0].is_merged:
        return read_small(ranks[0].path, INDEX_BYTES)
    bodies = [(file.stages, read_small(file.path, INDEX_BYTES)) for file in ranks]
    return merge_strategies({stage: body for stages, body in bodies for stage in stages})


def _with_merged(stages: Stages, merged: list[_File]) -> tuple[Stages, list[str]]:
    notes = []
    for file in merged:
        if not stages:
            stages = file.stages
        elif any(stages.get(stage) != layouts for stage, layouts in file.stages.items()):
            raise FormatError(
                f"{file.path} disagrees with the rank files beside it; remove the one that is out of date"
            )
        else:
            notes.append(f"{file.path} repeats the rank files beside it and was not needed")
    return stages, notes


def strategy_files(source: Path) -> list[Path]:
    """Return the strategy file, or those in the folder, `source`.

    Raises:
        ConfigError: There is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ConfigError(
            f"{source} does not exist; give the folder with ckpt_strategy_rank_*.ckpt or one such file"
        )
    found = _files_in(source)
    if not found:
        raise ConfigError(
            f"{source} holds no strategy file (*.ckpt or *.json), such as ckpt_strategy_rank_0.ckpt; without "
            "it nobody knows which part of a tensor a rank's file holds"
        )
    return found


def _files_in(folder: Path) -> list[Path]:
    """Return the strategy files in a folder, which may hold other JSON files, a run's config.json for one."""
    in_json = [path for path in folder.glob("*.json") if path.is_file() and _is_strategy(path)]
    return sorted([*folder.glob("*.ckpt"), *in_json])


def _is_strategy(path: Path) -> bool:
    return JSON_KEY in read_small(path, INDEX_BYTES)


def _read_files(source: Path) -> list[_File]:
    files: list[_File] = []
    # The ranks of a stage have equal files, so each content is decoded once.
    known: dict[bytes, _File] = {}
    for path in strategy_files(source):
        body = read_small(path, INDEX_BYTES)
        known[body] = replace(known[body], path=path) if body in known else _read_file(path)
        files.append(known[body])
    return files


def _read_file(path: Path) -> _File:
    stage, layouts = (read_json_strategy if path.suffix == ".json" else read_strategy)(path)
    if not layouts:
        raise FormatError(f"{path} describes no tensor")
    matches = {name: MERGED_NAME.fullmatch(name) for name in layouts}
    stages: Stages = {}
    for name, match in matches.items():
        if match is None:
            return _File(path, {stage: layouts}, is_merged=False)
        stages.setdefault(int(match[1]), {})[match[2]] = layouts[name]
    return _File(path, stages, is_merged=True)
