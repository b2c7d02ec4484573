"""Checkpoints in mindformers' layout: written whole or not at all, the old ones removed only afterwards.

    checkpoint/rank_R/<prefix>_rank_R-E_S.safetensors   weights, adam_m.*, adam_v.*, and the scalars below
    checkpoint/rank_R/meta.json                         {"last_epoch", "last_step", "last_ckpt_file"}

E is the epoch and S the step in it, counted from 1. A step counts only where every rank has a whole file of
it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_model.checkpoints.checkpoint_files import EpochStep, checkpoints_of
from qwen3_model.checkpoints.safetensors_file import (
    SafetensorsFile,
    TensorPlan,
    write_safetensors,
)
from qwen3_model.command.files import write_atomically, write_text_atomically
from qwen3_model.command.narrow import as_int, as_number, as_section, as_text, optional
from qwen3_model.errors import FormatError
from qwen3_train.data.batch_plan import Start
from qwen3_train.settings.validation import BestLoss

STATE_VERSION = 2
"""Version of the JSON under `qwen3_train` in a checkpoint's metadata; in 1 `data` depended on the batch."""


@dataclass(frozen=True, slots=True)
class FloatTensor:
    """A float32 tensor to save, fetched from the device when its turn comes."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class TrainState:
    """What a checkpoint says about its run besides tensors."""

    global_step: int
    """Steps taken."""
    data: str
    """Fingerprint of the data and their order."""
    base: str = ""
    """Fingerprint of the weights under adapters; empty where the model itself trains."""
    global_batch: int | None = None
    """Samples of a step; None where the checkpoint does not say."""
    start: Start = field(default_factory=Start)
    """Where the run stood when its steps got that size."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What decides the data's fingerprint besides their files, in words."""
    course: str = ""
    """Random number of the run's start, equal on all ranks, by which files of two starts differ."""
    version: int = STATE_VERSION
    skipped: int = 0
    """Number of steps taken whose update was not applied."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Rates, betas and the like of the run, by key."""
    best: BestLoss | None = None
    """The lowest loss of its evaluations; None where nothing was evaluated."""


def save_checkpoint(
    rank_dir: Path,
    stem: str,
    epoch_step: EpochStep,
    state: TrainState,
    tensors: Iterable[FloatTensor],
    *,
    is_shared: bool = False,
) -> Path:
    """Write one rank's checkpoint, then its meta.json.

    Args:
        rank_dir: `checkpoint/rank_R`.
        stem: `<prefix>_rank_R`.
        epoch_step: When it is taken.
        state: Step and data.
        tensors: Weights and moments.
        is_shared: Whether other ranks write what they hold as well as this one.
    """
    path = rank_dir / f"{stem}-{epoch_step.epoch}_{epoch_step.step}.safetensors"
    state_json = json.dumps(_state_json(state))
    entries = _entries(epoch_step, state, tensors)
    metadata = {"format": "ms", "qwen3_train": state_json}
    if is_shared:
        metadata["remove_redundancy"] = "True"
    write_atomically(path, lambda temporary: write_safetensors(temporary, entries, metadata))
    meta = {"last_epoch": epoch_step.epoch, "last_step": epoch_step.step, "last_ckpt_file": path.name}
    write_text_atomically(rank_dir / "meta.json", json.dumps(meta))
    return path


def remove_old(rank_dir: Path, epoch_step: EpochStep, keep_max: int) -> None:
    """Remove all but the newest `keep_max` checkpoints up to `epoch_step`, which is whole on every rank.

    Later ones are of an earlier start: the run was resumed from before them, by wish or as they were damaged.
    """
    paths = checkpoints_of(rank_dir)
    kept = sorted((each for each in paths if each <= epoch_step), reverse=True)[:keep_max]
    for each in paths.keys() - set(kept):
        paths[each].unlink()


def read_state(file: SafetensorsFile) -> TrainState:
    """Return the step and data of a checkpoint; one that mindformers wrote names no data ("").

    Raises:
        FormatError: It holds no global_step, was written by a newer version, or what it states is damaged.
    """
    try:
        raw = as_section(json.loads(file.metadata.get("qwen3_train", "{}")))
        version = as_int(raw.get("version", STATE_VERSION))
    except (FormatError, ValueError, RecursionError) as error:
        raise _damaged(file, error) from None
    if version > STATE_VERSION:
        raise FormatError(f"{file.path} was written by a newer qwen3-train; upgrade to resume from it")
    if "global_step" not in file.tensors:
        raise FormatError(f"{file.path} has no global_step; it is no training checkpoint")
    try:
        start, best = as_section(raw.get("start", {})), as_section(raw.get("best", {}))
        return TrainState(
            _scalar(file, "global_step"),
            as_text(raw.get("data", "")),
            as_text(raw.get("base", "")),
            optional(as_int, raw.get("global_batch")),
            Start(*(as_int(start.get(each.name, 0)) for each in fields(Start))),
            as_section(raw.get("facts", {})),
            as_text(raw.get("course", "")),
            version,
            as_int(raw.get("skipped", 0)),
            as_section(raw.get("settings", {})),
            _best(best) if best else None,
        )
    except FormatError as error:
        raise _damaged(file, error) from None


def _best(values: Mapping[str, object]) -> BestLoss:
    return BestLoss(as_number(values.get("loss")), as_int(values.get("step")), as_int(values.get("waited")))


def _damaged(file: SafetensorsFile, error: Exception) -> FormatError:
    return FormatError(
        f"{file.path}: what its metadata say of the run (qwen3_train) is damaged: {error}; resume from "
        "another checkpoint"
    )


def read_epoch(file: SafetensorsFile) -> int:
    """Return the epoch, counted from 1, in which a checkpoint was taken; 1 where it does not say."""
    return _scalar(file, "epoch_num") if "epoch_num" in file.tensors else 1


def _scalar(file: SafetensorsFile, name: str) -> int:
    return int(np.asarray(file.raw(name)).reshape(-1)[0])


def _state_json(state: TrainState) -> dict[str, object]:
    values: dict[str, object] = {"version": STATE_VERSION, "data": state.data, "facts": dict(state.facts)}
    if state.base:
        values["base"] = state.base
    if state.settings:
        values["settings"] = dict(state.settings)
    if state.best:
        values["best"] = asdict(state.best)
    if state.skipped:
        values["skipped"] = state.skipped
    if state.course:
        values["course"] = state.course
    if state.global_batch is not None:
        values |= {"global_batch": state.global_batch, "start": asdict(state.start)}
    return values


def _entries(
    epoch_step: EpochStep, state: TrainState, tensors: Iterable[FloatTensor]
) -> Iterator[tuple[TensorPlan, Iterator[NDArray[np.generic]]]]:
    for tensor in tensors:
        yield TensorPlan(tensor.name, "F32", tensor.shape), _iterate_once(tensor.read)
    for name, count in (
        ("epoch_num", epoch_step.epoch),
        ("step_num", state.global_step),
        ("global_step", state.global_step),
    ):
        yield TensorPlan(name, "I32", (1,)), iter([np.array([count], np.int32)])
    # float32 needs no scaled loss; mindformers expects the scalar.
    yield TensorPlan("loss_scale", "F32", (1,)), iter([np.ones(1, np.float32)])


def _iterate_once(read: Callable[[], NDArray[np.float32]]) -> Iterator[NDArray[np.generic]]:
    yield read()
