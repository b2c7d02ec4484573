"""Where a run's weights come from: random numbers, a Hugging Face folder, or a checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mindspore import Parameter

from qwen3_model.checkpoints.checkpoint_files import is_hf_folder
from qwen3_model.checkpoints.fused import unfused, weight_of
from qwen3_model.checkpoints.rows import from_file
from qwen3_model.checkpoints.tensors import TensorPart, Tensors
from qwen3_model.checkpoints.weight_files import open_weight_files
from qwen3_model.errors import WeightError
from qwen3_model.network.loading import fill, init_model, load_hf
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.ranks.layout import shard_slices, whole_shape
from qwen3_train.checkpoints.checkpoint import read_state
from qwen3_train.checkpoints.one_reader import OneReader
from qwen3_train.checkpoints.own_slices import find_slices, own_cuts
from qwen3_train.checkpoints.source import ResumeSource
from qwen3_train.settings.run import TrainSettings
from qwen3_train.step.step import TrainStep

SHOWN_PROBLEMS = 5


def start_weights(model: Qwen3ForCausalLM, settings: TrainSettings, reader: OneReader | None) -> str:
    """Fill the model as the settings say, before anything is compiled, and say from where.

    Replicas read all of it each, or with a `reader` a part each.

    Raises:
        WeightError: The weights do not fit the model.
    """
    source = settings.weights_from
    if source is None:
        init_model(model, settings.seed)
        return f"random, seed {settings.seed}"
    return load_weights(model, source, settings, reader)


def load_weights(
    model: Qwen3ForCausalLM, source: Path, settings: TrainSettings, reader: OneReader | None
) -> str:
    """Fill the model from a Hugging Face folder, a run, a merged checkpoint or a file, and say from where.

    Raises:
        WeightError: The weights do not fit the model.
    """
    if is_hf_folder(source):
        load_hf(model, source, put=reader.put if reader else None)
        return str(source)
    tensors = unfused(open_weight_files(source, settings.strategy_from), model.config, settings.fused_layout)
    _assign(model, dict(model.parameters_and_names()), tensors, 0, reader)
    return str(tensors.first.path)


def resume_weights(
    step: TrainStep,
    model: Qwen3ForCausalLM,
    source: ResumeSource,
    settings: TrainSettings,
    reader: OneReader | None,
) -> int:
    """Fill weights and moments from a checkpoint, before anything is compiled.

    The step also learns how many steps of the run were skipped.

    Args:
        step: Has the moments.
        model: Has the weights; it may be cut otherwise than those who wrote the files.
        source: The checkpoint.
        settings: The run's settings.
        reader: Lets replicas read a part each of what they all hold; None where each reads all.

    Returns:
        The steps that the run took.

    Raises:
        WeightError: The checkpoint does not fit the model.
    """
    parameters = step.weights | step.moments()
    if not _resume_own(parameters, step, source, settings, reader):
        tensors = unfused(source.open(step.grid.rank), model.config, settings.fused_layout)
        _assign(model, parameters, tensors, step.grid.replica, reader)
    state = read_state(source.first_file)
    step.num_skipped = state.skipped
    source.close()
    return state.global_step


def _resume_own(
    parameters: Mapping[str, Parameter],
    step: TrainStep,
    source: ResumeSource,
    settings: TrainSettings,
    reader: OneReader | None,
) -> bool:
    """Fill all from a checkpoint of the same layout; False, and nothing is filled, where it is of another.

    With a `reader` all replicas do the one or the other.
    """
    rank = step.grid.rank
    cuts, holders = own_cuts(source, settings, rank), {}
    if reader is not None:
        own = source.files[rank].tensors if cuts is not None else {}
        alike = [name for name, parameter in parameters.items() if _is_alike(name, parameter, parameters)]
        found = reader.holders([cuts is not None, *(name in own for name in alike)])
        if not found[:, 0].all():
            return False
        holders = {name: found[:, at] for at, name in enumerate(alike, 1) if found[:, at].any()}
    if cuts is None:
        return False
    slices = find_slices(source, cuts, (name for name in parameters if name not in holders), rank)
    fits = slices is not None
    if slices is not None:
        own_file = source.files[rank]
        slices |= {name: from_file(own_file, name) for name in holders if name in own_file.tensors}
        fits = all(_fits(slice_.plan.shape, name, parameters) for name, slice_ in slices.items())
    if reader is not None:
        fits = bool(reader.holders([fits]).all())
    if not fits or slices is None:
        return False
    for name, parameter in parameters.items():
        slice_ = slices.get(name)
        if reader is not None and name in holders:
            dtype, values = (slice_.plan.dtype, TensorPart(slice_)) if slice_ else ("", None)
            reader.put(parameter, dtype, values, holders[name])
        elif slice_ is not None:
            _put(parameter, slice_.plan.dtype, TensorPart(slice_), step.grid.replica)
    return True


def _is_alike(name: str, parameter: Parameter, parameters: Mapping[str, Parameter]) -> bool:
    """Return whether all replicas hold the same of it: weights, and moments that are not shared out."""
    return tuple(parameter.shape) == tuple(parameters[weight_of(name)].shape)


def _fits(shape: tuple[int, ...], name: str, parameters: Mapping[str, Parameter]) -> bool:
    """Return whether a slice is what the parameter is, or what it has elements of."""
    return shape in (tuple(parameters[name].shape), tuple(parameters[weight_of(name)].shape))


def _assign(
    model: Qwen3ForCausalLM,
    parameters: Mapping[str, Parameter],
    tensors: Tensors,
    replica: int,
    reader: OneReader | None,
) -> None:
    problems, parts = [], {}
    for name, parameter in parameters.items():
        if name not in tensors:
            problems.append(f"{name} is missing")
            continue
        weight = weight_of(name)
        shape = tensors.shape(name)
        # Moments may be a replica's rows or elements of what the weight is.
        wanted = whole_shape(weight, tuple(parameters[weight].shape), model.tp.size)
        if shape != wanted:
            problems.append(f"{name} has shape {shape}, the model's has {wanted}")
        else:
            parts[name] = _part_of(weight, parameter, parameters[weight], shape, model, replica)
    if problems:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise WeightError(
            f"{tensors.first.path} does not fit the model: {'; '.join(problems[:SHOWN_PROBLEMS])}{more}"
        )
    for name, parameter in parameters.items():
        if reader is not None and _is_alike(name, parameter, parameters):
            reader.put(parameter, *tensors.part(name, parts[name]))
        else:
            _put(parameter, *tensors.part(name, parts[name]), replica)


def _part_of(
    weight: str,
    parameter: Parameter,
    whole: Parameter,
    shape: tuple[int, ...],
    model: Qwen3ForCausalLM,
    replica: int,
) -> tuple[slice, ...]:
    """What of a whole tensor like `weight` belongs into `parameter`: a shard, or a replica's rows of it.

    Where `parameter` has a replica's elements, the shard that they are of.
    """
    part = shard_slices(weight, shape, tp=model.tp.size, shard=model.tp.index)
    rows, own_rows = part[0].stop - part[0].start, parameter.shape[0]
    if own_rows == rows or tuple(parameter.shape[1:]) != tuple(whole.shape[1:]):
        return part
    first = part[0].start + replica * own_rows
    return (slice(first, first + own_rows), *part[1:])


def _put(parameter: Parameter, dtype: str, part: TensorPart, replica: int) -> None:
    """Fill a parameter from `part`, or from the replica's elements of it; no other rows are read."""
    shape = tuple(parameter.shape)
    if part.shape == shape:
        fill(parameter, dtype, part)
        return
    columns, count = part.shape[1], shape[1]
    first = replica * count
    row, offset = divmod(first, columns)
    rows = np.asarray(part[row : -(-(first + count) // columns)])
    fill(parameter, dtype, rows.reshape(-1)[offset : offset + count].reshape(shape))
