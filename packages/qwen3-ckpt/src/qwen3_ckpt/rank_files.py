"""The files of a distributed checkpoint: `rank_R/<prefix>_rank_R-E_S.safetensors` for every rank.

E_S is the suffix by which people name a checkpoint: epoch and step in it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.safetensors_file import SafetensorsFile, open_safetensors

FILE_NAME = re.compile(r".*-(?P<epoch>\d+)_(?P<step>\d+)\.safetensors")
RANK_DIR = re.compile(r"rank_(\d+)")


@dataclass(frozen=True, slots=True)
class RankFiles:
    """One step of a checkpoint."""

    suffix: str
    """Epoch and step, as in `1_200`."""
    files: dict[int, SafetensorsFile]
    """The opened file of each rank that has one."""
    notes: tuple[str, ...]
    """What a reader of the result should know, such as steps that were passed over."""


def open_rank_files(checkpoint_dir: Path, suffix: str | None) -> RankFiles:
    """Open the files of `suffix`, or of the newest step that every rank has whole.

    Raises:
        ConfigError: There are no rank folders, no rank has the step, ranks are at different steps, or a rank
            has two files of the step.
        FormatError: A file is damaged, and no older step is whole.
    """
    ranks = _rank_dirs(checkpoint_dir)
    steps = {rank: _steps_of(path) for rank, path in ranks.items()}
    if suffix:
        return _open_step(checkpoint_dir, steps, suffix)
    candidates, notes = _common_steps(checkpoint_dir, steps)
    for older, newest in zip([*candidates[1:], None], candidates, strict=True):
        try:
            opened = _open_step(checkpoint_dir, steps, newest)
        except FormatError as error:
            if older is None:
                raise
            notes.append(f"step {newest} is not whole and was passed over: {error}")
        else:
            return RankFiles(newest, opened.files, (*notes, *opened.notes))
    raise AssertionError("the last candidate is opened or raises")


def _open_step(checkpoint_dir: Path, steps: dict[int, dict[str, list[Path]]], suffix: str) -> RankFiles:
    files = {
        rank: open_safetensors(_only(paths[suffix], suffix))
        for rank, paths in sorted(steps.items())
        if suffix in paths
    }
    if not files:
        known = sorted({step for found in steps.values() for step in found}, key=_step_key)
        raise ConfigError(
            f"{checkpoint_dir} has no step {suffix}; its steps are {', '.join(known) or 'none'}"
        )
    absent = ", ".join(f"rank_{rank}" for rank in steps if rank not in files)
    return RankFiles(suffix, files, (f"step {suffix} is missing in {absent}",) if absent else ())


def rank_steps(checkpoint_dir: Path) -> dict[int, list[str]]:
    """Return the steps that each rank folder has, oldest first.

    Raises:
        ConfigError: There are no rank folders.
    """
    ranks = _rank_dirs(checkpoint_dir)
    return {rank: sorted(_steps_of(path), key=_step_key) for rank, path in ranks.items()}


def _rank_dirs(checkpoint_dir: Path) -> dict[int, Path]:
    if not checkpoint_dir.is_dir():
        raise ConfigError(f"{checkpoint_dir} is no folder; give the folder that holds rank_0, rank_1, ...")
    found = {}
    for path in checkpoint_dir.iterdir():
        if path.is_dir() and (match := RANK_DIR.fullmatch(path.name)):
            found[int(match[1])] = path
    if not found:
        nested = checkpoint_dir / "checkpoint"
        if nested.is_dir():
            return _rank_dirs(nested)
        raise ConfigError(f"{checkpoint_dir} holds no folders rank_0, rank_1, ...; give a checkpoint folder")
    return dict(sorted(found.items()))


def _steps_of(rank_dir: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(rank_dir.glob("*.safetensors")):
        if (match := FILE_NAME.fullmatch(path.name)) and not path.name.startswith("."):
            found.setdefault(f"{match['epoch']}_{match['step']}", []).append(path)
    return found


def _common_steps(
    checkpoint_dir: Path, steps: dict[int, dict[str, list[Path]]]
) -> tuple[list[str], list[str]]:
    """Return the steps that every rank folder has, newest first, and notes on newer ones."""
    everywhere = set.intersection(*(set(found) for found in steps.values()))
    anywhere = set.union(*(set(found) for found in steps.values()))
    if not everywhere:
        listed = "; ".join(
            f"rank_{r}: {', '.join(sorted(found, key=_step_key)) or 'none'}" for r, found in steps.items()
        )
        raise ConfigError(
            f"{checkpoint_dir}: no step is in every rank folder ({listed}); "
            "name one with --file-suffix to merge it from the ranks that have it"
        )
    common = sorted(everywhere, key=_step_key, reverse=True)
    later = sorted((step for step in anywhere if _step_key(step) > _step_key(common[0])), key=_step_key)
    return common, [f"step {step} is not in every rank folder and was passed over" for step in later]


def _step_key(suffix: str) -> tuple[int, ...]:
    return tuple(int(part) for part in suffix.split("_"))


def _only(paths: list[Path], suffix: str) -> Path:
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise ConfigError(
            f"{paths[0].parent} has several files of step {suffix}: {names}; remove or move all but one"
        )
    return paths[0]
