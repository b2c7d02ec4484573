"""Which files of a run hold a step that is whole on every rank.

    checkpoint/rank_R/<prefix>_rank_R-E_S.safetensors

E is the epoch and S the step in it, counted from 1; `E_S` is the suffix by which people name a checkpoint. A
step counts only where every rank has a whole file of it, and all were written by one start of the run.
"""

import errno
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.checkpoints.safetensors_file import SafetensorsFile, open_safetensors
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError, FormatError

NAME = re.compile(r"(?P<prefix>.+)_rank_(?P<rank>\d+)-(?P<epoch>\d+)_(?P<step>\d+)\.safetensors")
STEP_NAME = re.compile(r"[^.].*-(?P<epoch>\d+)_(?P<step>\d+)\.safetensors")
# What this process lacks says nothing about a file.
OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
RANK_DIR = re.compile(r"rank_(\d+)")


@dataclass(frozen=True, order=True, slots=True)
class EpochStep:
    """When a checkpoint was taken, counted from 1."""

    epoch: int
    step: int
    """Step within the epoch."""

    def __str__(self) -> str:
        return f"{self.epoch}_{self.step}"


@dataclass(frozen=True, slots=True)
class RankFiles:
    """One step of a checkpoint."""

    step: EpochStep
    files: dict[int, SafetensorsFile]
    """The opened file of each rank that has one."""
    notes: tuple[str, ...] = ()
    """What a reader of the result should know, such as steps that were passed over."""


def checkpoints_of(rank_dir: Path) -> dict[EpochStep, Path]:
    """Return the checkpoint files of one rank's folder by step, whole or not."""
    found = {}
    for path in sorted(rank_dir.glob("*.safetensors")):
        if match := NAME.fullmatch(path.name):
            found[EpochStep(int(match["epoch"]), int(match["step"]))] = path
    return found


def choose_checkpoint(
    checkpoint_dir: Path, num_ranks: int | None, name: str | None
) -> tuple[dict[int, Path], list[str]]:
    """Return the path of each rank's file that `choose_rank_files` opens, and what was passed over."""
    files, passed_over = choose_rank_files(checkpoint_dir, num_ranks, name)
    return {rank: file.path for rank, file in files.items()}, passed_over


def choose_rank_files(
    checkpoint_dir: Path, num_ranks: int | None, name: str | None
) -> tuple[dict[int, SafetensorsFile], list[str]]:
    """Open each rank's file of the newest step that is whole on every rank, and say what was passed over.

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
    ranks = {
        rank: {
            epoch_step: [path] for epoch_step, path in checkpoints_of(checkpoint_dir / f"rank_{rank}").items()
        }
        for rank in range(num_ranks)
    }
    epoch_steps = sorted(set().union(*ranks.values()), reverse=True)
    if name is not None:
        match = NAME.fullmatch(name if name.endswith(".safetensors") else f"{name}.safetensors")
        epoch_steps = [
            epoch_step
            for epoch_step in epoch_steps
            if match and epoch_step == EpochStep(int(match["epoch"]), int(match["step"]))
        ]
    passed_over: list[str] = []
    for step in _whole_steps(epoch_steps, ranks, passed_over.append):
        return step.files, passed_over
    wanted = f"no checkpoint {name}" if name else f"no whole checkpoint of {counted(num_ranks, 'rank')}"
    detail = f": {'; '.join(passed_over)}" if passed_over else ""
    raise ConfigError(f"{checkpoint_dir} has {wanted} to resume from{detail}")


def files_of_step(checkpoint_dir: Path, name: str) -> dict[int, Path]:
    """Return each rank's file of the step of `name`, a file of any rank; none of them is looked at.

    Raises:
        ConfigError: `name` is none, or there are no rank folders.
    """
    match = NAME.fullmatch(name if name.endswith(".safetensors") else f"{name}.safetensors")
    if match is None:
        raise ConfigError(f"{name} is no file of a rank, such as qwen3_rank_0-1_200.safetensors")
    step = f"{match['epoch']}_{match['step']}"
    return {
        rank: folder / f"{match['prefix']}_rank_{rank}-{step}.safetensors"
        for rank, folder in _rank_dirs(checkpoint_dir).items()
    }


def open_rank_files(checkpoint_dir: Path, suffix: str | None) -> RankFiles:
    """Open the files of step `suffix`, or of the newest step that every rank folder has whole.

    Ranks that have no folder, or lack the step `suffix`, may hold slices that others hold, too; whoever puts
    the tensors together finds that out.

    Raises:
        ConfigError: There are no rank folders, no rank has the step, or a rank has two files of the step.
        FormatError: A file is damaged, or ranks of different starts of the run wrote the step, and no older
            step is whole.
    """
    ranks = {rank: _steps_of(path) for rank, path in _rank_dirs(checkpoint_dir).items()}
    epoch_steps = sorted(set().union(*ranks.values()), reverse=True)
    if suffix is not None:
        chosen = [epoch_step for epoch_step in epoch_steps if str(epoch_step) == suffix.strip()]
        holders = {rank: steps for rank, steps in ranks.items() if chosen and chosen[0] in steps}
        if not holders:
            known = ", ".join(map(str, reversed(epoch_steps))) or "none"
            raise ConfigError(f"{checkpoint_dir} has no step {suffix}; its steps are {known}")
        absent = ", ".join(f"rank_{rank}" for rank in ranks if rank not in holders)
        notes = [f"step {suffix} is missing in {absent}"] if absent else []
        step = _open_step(chosen[0], holders, tuple(notes))
        if problem := _start_problem(step):
            raise FormatError(problem)
        return step
    everywhere = set(epoch_steps).intersection(*ranks.values())
    if not everywhere:
        listed = "; ".join(f"rank_{r}: {', '.join(map(str, sorted(s))) or 'none'}" for r, s in ranks.items())
        raise ConfigError(
            f"{checkpoint_dir}: no step is in every rank folder ({listed}); "
            "name one with --file-suffix to merge it from the ranks that have it"
        )
    notes, problem = [], ""
    for epoch_step in epoch_steps:
        if epoch_step not in everywhere:
            notes.append(f"step {epoch_step} is not in every rank folder and was passed over")
            continue
        try:
            step = _open_step(epoch_step, ranks)
            problem = _start_problem(step) or ""
        except FormatError as error:
            problem = str(error)
        if not problem:
            return RankFiles(epoch_step, step.files, tuple(notes))
        notes.append(f"step {epoch_step} was passed over: {problem}")
    raise FormatError(problem)


def rank_steps(checkpoint_dir: Path) -> dict[int, list[EpochStep]]:
    """Return the steps that each rank folder has, oldest first.

    Raises:
        ConfigError: There are no rank folders.
    """
    return {rank: sorted(_steps_of(path)) for rank, path in _rank_dirs(checkpoint_dir).items()}


def is_hf_folder(source: Path) -> bool:
    """Return whether weights are a Hugging Face folder; a run has its config.json, too."""
    return (source / "config.json").is_file() and not (source / "checkpoint").is_dir()


def count_ranks(checkpoint_dir: Path) -> int:
    """Return how many ranks the run had, by their folders and strategy files; at least 1."""
    strategies = (checkpoint_dir.parent / "strategy").glob("ckpt_strategy_rank_*.ckpt")
    return max(1, sum(1 for _ in checkpoint_dir.glob("rank_*/")), sum(1 for _ in strategies))


def _whole_steps(
    epoch_steps: Iterable[EpochStep],
    ranks: Mapping[int, Mapping[EpochStep, list[Path]]],
    pass_over: Callable[[str], None],
) -> Iterator[RankFiles]:
    for epoch_step in epoch_steps:
        lacking = next((rank for rank, steps in ranks.items() if epoch_step not in steps), None)
        if lacking is not None:
            pass_over(f"step {epoch_step} is missing on rank {lacking}")
            continue
        try:
            step = _open_step(epoch_step, ranks)
        except FormatError as error:
            pass_over(str(error))
            continue
        if problem := _start_problem(step):
            pass_over(problem)
        else:
            yield step


def _open_step(
    epoch_step: EpochStep, ranks: Mapping[int, Mapping[EpochStep, list[Path]]], notes: tuple[str, ...] = ()
) -> RankFiles:
    """Open every rank's file of a step."""
    files: dict[int, SafetensorsFile] = {}
    for rank, steps in sorted(ranks.items()):
        path = _require_one(steps[epoch_step], epoch_step)
        try:
            files[rank] = open_safetensors(path)
        except (FormatError, OSError) as error:
            if isinstance(error, OSError) and error.errno in OWN_LIMITS:
                raise
            raise FormatError(f"{path.name} is not whole ({error})") from None
    return RankFiles(epoch_step, files, notes)


def _start_problem(step: RankFiles) -> str | None:
    """Return a sentence where ranks of different starts of the run wrote the step: it may be a mixture."""
    if len({read_run_text(file, "course") for file in step.files.values()}) < 2:
        return None
    return f"step {step.step} was written by ranks of different starts of the run"


def read_run_text(file: SafetensorsFile, key: str) -> str:
    """Return a text that a run states in the metadata of its files; empty where it states none.

    Args:
        file: A rank's file of a checkpoint.
        key: `course`, which start of the run wrote the file, or `base`, the fingerprint of the weights under
            adapters.
    """
    try:
        return str(json.loads(file.metadata.get("qwen3_train", "{}")).get(key) or "")
    except (ValueError, AttributeError, RecursionError):
        return ""


def _rank_dirs(checkpoint_dir: Path) -> dict[int, Path]:
    if not checkpoint_dir.is_dir():
        raise ConfigError(f"{checkpoint_dir} is no folder; give the folder that holds rank_0, rank_1, ...")
    found = {}
    for path in checkpoint_dir.iterdir():
        if (match := RANK_DIR.fullmatch(path.name)) and path.is_dir():
            found[int(match[1])] = path
    if not found:
        nested = checkpoint_dir / "checkpoint"
        if nested.is_dir():
            return _rank_dirs(nested)
        raise ConfigError(f"{checkpoint_dir} holds no folders rank_0, rank_1, ...; give a checkpoint folder")
    return dict(sorted(found.items()))


def _steps_of(rank_dir: Path) -> dict[EpochStep, list[Path]]:
    found: dict[EpochStep, list[Path]] = {}
    for path in sorted(rank_dir.glob("*.safetensors")):
        if match := STEP_NAME.fullmatch(path.name):
            found.setdefault(EpochStep(int(match["epoch"]), int(match["step"])), []).append(path)
    return found


def _require_one(paths: list[Path], epoch_step: EpochStep) -> Path:
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise ConfigError(
            f"{paths[0].parent} has several files of step {epoch_step}: {names}; remove or move all but one"
        )
    return paths[0]
