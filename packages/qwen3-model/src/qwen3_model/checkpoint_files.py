"""Which files of a run hold a step that is whole on every rank.

    checkpoint/rank_R/<prefix>_rank_R-E_S.safetensors

E is the epoch and S the step in it, counted from 1. A step counts only where every rank has a whole file of
it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.safetensors_file import SafetensorsFile, open_safetensors

NAME = re.compile(r"(?P<prefix>.+)_rank_(?P<rank>\d+)-(?P<epoch>\d+)_(?P<step>\d+)\.safetensors")


@dataclass(frozen=True, order=True, slots=True)
class Place:
    """When a checkpoint was taken, counted from 1."""

    epoch: int
    step: int
    """Step within the epoch."""


def checkpoints_of(rank_dir: Path) -> dict[Place, Path]:
    """Return the checkpoint files of one rank's folder by place, whole or not."""
    found = {}
    for path in sorted(rank_dir.glob("*.safetensors")):
        if match := NAME.fullmatch(path.name):
            found[Place(int(match["epoch"]), int(match["step"]))] = path
    return found


def choose_checkpoint(
    checkpoint_dir: Path, num_ranks: int | None, name: str | None
) -> tuple[dict[int, Path], list[str]]:
    """Return each rank's file of the newest step that is whole on every rank, and what was passed over.

    Args:
        checkpoint_dir: A run folder or its `checkpoint` folder.
        num_ranks: Ranks that must have the step; None for all that the run had.
        name: A file name of any rank, to take that step; None for the newest.

    Raises:
        ConfigError: No step is whole on every rank, or `name` is not there.
    """
    if (checkpoint_dir / "checkpoint").is_dir():
        checkpoint_dir = checkpoint_dir / "checkpoint"
    if num_ranks is None:
        num_ranks = count_ranks(checkpoint_dir)
    ranks = [checkpoints_of(checkpoint_dir / f"rank_{rank}") for rank in range(num_ranks)]
    places = sorted(set().union(*ranks), reverse=True)
    if name is not None:
        match = NAME.fullmatch(name if name.endswith(".safetensors") else f"{name}.safetensors")
        places = [
            place for place in places if match and place == Place(int(match["epoch"]), int(match["step"]))
        ]
    passed_over: list[str] = []
    for place in places:
        problem = _problem_of(place, ranks)
        if problem is None:
            return {rank: files[place] for rank, files in enumerate(ranks)}, passed_over
        passed_over.append(problem)
    wanted = f"no checkpoint {name}" if name else f"no whole checkpoint of {num_ranks} rank(s)"
    detail = f": {'; '.join(passed_over)}" if passed_over else ""
    raise ConfigError(f"{checkpoint_dir} has {wanted} to resume from{detail}")


def is_hf_folder(source: Path) -> bool:
    """Say whether weights are a Hugging Face folder; a run has its config.json, too."""
    return (source / "config.json").is_file() and not (source / "checkpoint").is_dir()


def checkpoint_files(source: Path) -> dict[int, Path]:
    """Return each rank's file of a run's newest step, of the step of a file of it, or one file alone.

    Raises:
        ConfigError: No step is whole on every rank.
    """
    if not source.is_file():
        return choose_checkpoint(source, None, None)[0]
    if NAME.fullmatch(source.name) and source.parent.name.startswith("rank_"):
        return choose_checkpoint(source.parent.parent, None, source.name)[0]
    return {0: source}


def count_ranks(checkpoint_dir: Path) -> int:
    """Return how many ranks the run had, by their folders and strategy files; at least 1."""
    strategies = (checkpoint_dir.parent / "strategy").glob("ckpt_strategy_rank_*.ckpt")
    return max(1, sum(1 for _ in checkpoint_dir.glob("rank_*/")), sum(1 for _ in strategies))


def _problem_of(place: Place, ranks: Iterable[Mapping[Place, Path]]) -> str | None:
    courses = set()
    for rank, files in enumerate(ranks):
        if place not in files:
            return f"step {place.epoch}_{place.step} is missing on rank {rank}"
        try:
            courses.add(_course(open_safetensors(files[place])))
        except (FormatError, OSError) as error:
            return f"{files[place].name} is not whole ({error})"
    if len(courses) > 1:
        return f"step {place.epoch}_{place.step} was written by ranks of different starts of the run"
    return None


def _course(file: SafetensorsFile) -> str:
    """Which start of a run wrote the file; empty where it does not say."""
    try:
        return str(json.loads(file.metadata.get("qwen3_train", "{}")).get("course", ""))
    except (ValueError, AttributeError):
        return ""
