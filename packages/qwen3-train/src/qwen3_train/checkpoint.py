"""Checkpoints in mindformers' layout: written whole or not at all, the old ones removed only afterwards.

    checkpoint/rank_R/<prefix>_rank_R-E_S.safetensors   weights, adam_m.*, adam_v.*, and the scalars below
    checkpoint/rank_R/meta.json                         {"last_epoch", "last_step", "last_ckpt_file"}

E is the epoch and S the step in it, counted from 1. A step counts only where every rank has a whole file of
it.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.files import write_atomically, write_text_atomically
from qwen3_model.safetensors_file import (
    SafetensorsFile,
    TensorPlan,
    open_safetensors,
    write_safetensors,
)

STATE_VERSION = 1
"""Of the JSON under `qwen3_train` in a checkpoint's metadata."""
NAME = re.compile(r"(?P<prefix>.+)_rank_(?P<rank>\d+)-(?P<epoch>\d+)_(?P<step>\d+)\.safetensors")


@dataclass(frozen=True, slots=True)
class FloatTensor:
    """A float32 tensor to save, fetched from the device when its turn comes."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True, order=True, slots=True)
class Place:
    """When a checkpoint was taken, counted from 1."""

    epoch: int
    step: int
    """Step within the epoch."""


@dataclass(frozen=True, slots=True)
class TrainState:
    """What a checkpoint says about its run besides tensors."""

    global_step: int
    """Steps taken."""
    data: str
    """Fingerprint of the data and their order."""
    base: str = ""
    """Fingerprint of the weights under adapters; empty where the model itself trains."""


def save_checkpoint(
    rank_dir: Path,
    stem: str,
    place: Place,
    state: TrainState,
    tensors: Iterable[FloatTensor],
    keep_max: int,
    *,
    wait_for_others: Callable[[], object] = lambda: None,
) -> Path:
    """Write one rank's checkpoint, then its meta.json, then remove those beyond the newest `keep_max`.

    Args:
        rank_dir: `checkpoint/rank_R`.
        stem: `<prefix>_rank_R`.
        place: When it is taken.
        state: Step and data.
        tensors: Weights and moments.
        keep_max: Files to keep, this one included.
        wait_for_others: Returns when all ranks have written theirs; nothing is removed before.
    """
    path = rank_dir / f"{stem}-{place.epoch}_{place.step}.safetensors"
    told = json.dumps(
        {"version": STATE_VERSION, "data": state.data} | ({"base": state.base} if state.base else {})
    )
    entries = _entries(place, state, tensors)
    write_atomically(
        path,
        lambda temporary: write_safetensors(temporary, entries, {"format": "ms", "qwen3_train": told}),
    )
    meta = {"last_epoch": place.epoch, "last_step": place.step, "last_ckpt_file": path.name}
    write_text_atomically(rank_dir / "meta.json", json.dumps(meta))
    wait_for_others()
    for _, old in sorted(checkpoints_of(rank_dir).items(), reverse=True)[keep_max:]:
        old.unlink()
    return path


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


def read_state(file: SafetensorsFile) -> TrainState:
    """Return the step and data of a checkpoint; one that mindformers wrote names no data ("").

    Raises:
        FormatError: It holds no global_step, or was written by a newer version.
    """
    raw: dict[str, Any] = json.loads(file.metadata.get("qwen3_train", "{}"))
    if raw.get("version", STATE_VERSION) > STATE_VERSION:
        raise FormatError(f"{file.path} was written by a newer qwen3-train; upgrade to resume from it")
    if "global_step" not in file.tensors:
        raise FormatError(f"{file.path} has no global_step; it is no training checkpoint")
    step = int(np.asarray(file.raw("global_step")).reshape(-1)[0])
    return TrainState(step, raw.get("data", ""), raw.get("base", ""))


def _problem_of(place: Place, ranks: Iterable[Mapping[Place, Path]]) -> str | None:
    for rank, files in enumerate(ranks):
        if place not in files:
            return f"step {place.epoch}_{place.step} is missing on rank {rank}"
        try:
            open_safetensors(files[place])
        except (FormatError, OSError) as error:
            return f"{files[place].name} is not whole ({error})"
    return None


def _entries(
    place: Place, state: TrainState, tensors: Iterable[FloatTensor]
) -> Iterator[tuple[TensorPlan, Iterator[NDArray[Any]]]]:
    for tensor in tensors:
        yield TensorPlan(tensor.name, "F32", tensor.shape), _once(tensor.read)
    for name, count in (
        ("epoch_num", place.epoch),
        ("step_num", state.global_step),
        ("global_step", state.global_step),
    ):
        yield TensorPlan(name, "I32", (1,)), iter([np.array([count], np.int32)])
    # float32 needs no scaled loss; mindformers expects the scalar.
    yield TensorPlan("loss_scale", "F32", (1,)), iter([np.ones(1, np.float32)])


def _once(read: Callable[[], NDArray[np.float32]]) -> Iterator[NDArray[Any]]:
    yield read()
