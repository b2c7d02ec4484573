"""Whole tensors out of the files that the ranks of a run have written, whatever its layout was.

The strategy files beside a checkpoint state how each tensor was cut; a run of one process needs none. Only
headers and the run's scalars are read here; files that do not fit are refused before any weight is read.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qwen3_model.checkpoints.checkpoint_files import RANK_DIR
from qwen3_model.checkpoints.replicas import check_samples
from qwen3_model.checkpoints.rows import (
    FileRows,
    JoinedColumns,
    LazyTensor,
    RowSource,
    StackedRows,
    equal_rows,
    from_file,
)
from qwen3_model.checkpoints.safetensors_file import SafetensorsFile, TensorPlan, open_safetensors
from qwen3_model.checkpoints.strategies import MERGED_FILES, Stages, find_strategy, read_stages
from qwen3_model.checkpoints.strategy import TensorLayout
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError, FormatError, WeightError

MAX_NAMED = 8
"""Problems that one message states."""
DROPPED_PREFIX = "accu_grads"
"""Sums of gradients, which mindformers saves in the middle of a step; no checkpoint needs them."""
COUNTERS = ("epoch_num", "step_num", "global_step")
"""Scalars that must be equal in all files of a step."""
Files = Mapping[int, SafetensorsFile]
"""A step's files by rank."""


@dataclass(slots=True)
class Assembled:
    """A checkpoint as whole tensors."""

    tensors: dict[str, LazyTensor]
    """Weights and optimizer state, by name, stage by stage."""
    run_state: dict[str, LazyTensor]
    """Scalars that no strategy describes, such as global_step."""
    notes: list[str] = field(default_factory=list)
    stage_twins: list[tuple[LazyTensor, LazyTensor]] = field(default_factory=list)
    """Tensors that two stages hold, such as a tied embedding; the first is used."""


def open_rank_tensors(
    files: Mapping[int, Path | SafetensorsFile],
    strategy: Path | None = None,
    *,
    own_rank: int | None = None,
) -> Tensors:
    """Open each rank's file of one step, with the strategies of its run, to be read into memory.

    Args:
        files: By rank; those that are open are not opened again.
        strategy: Folder of the ranks' strategy files, or one file that merges the stages of a pipeline; the
            run's own when left out.
        own_rank: Rank whose file is read wherever it holds what is wanted.

    Raises:
        ConfigError: Several ranks wrote the files, and a strategy file is missing.
        FormatError: A file is damaged, or files and strategies do not fit.
        WeightError: Tensors are incomplete, or ranks disagree; see `assemble`.
    """
    opened = {
        rank: open_safetensors(file) if isinstance(file, Path) else file for rank, file in files.items()
    }
    if own_rank in opened:
        opened = {own_rank: opened[own_rank]} | opened
    found = strategy_of(opened, strategy)
    whole = assemble(opened, read_stages(found)[0] if found else {})
    return Tensors(opened[min(opened)], whole.tensors | whole.run_state)


def strategy_path(run_dir: Path, rank: int) -> Path:
    """Return the strategy file of a rank."""
    return run_dir / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt"


def strategy_of(files: Files, strategy: Path | None) -> Path | None:
    """Return the strategy files that describe a checkpoint: those named, else those near it; None for none.

    Args:
        files: By rank.
        strategy: As the caller names it; None to look near the files. A run of one process has none.

    Raises:
        ConfigError: There are several ranks, no strategy is named, and the run lacks that of a rank.
    """
    path = files[min(files)].path
    if strategy is not None:
        return strategy
    found = find_strategy(path.parent.parent) if RANK_DIR.fullmatch(path.parent.name) else None
    if len(files) == 1:
        stages = read_stages(found)[0] if found else {}
        num_devices = sum(next(iter(layouts.values())).num_devices() for layouts in stages.values())
        return found if num_devices > 1 else None
    if found is None or (found.is_dir() and not any((found / name).is_file() for name in MERGED_FILES)):
        for rank, file in files.items():
            own = strategy_path(file.path.parent.parent.parent, rank)
            if not any(own.with_suffix(ending).is_file() for ending in (".ckpt", ".json")):
                raise ConfigError(
                    f"{own} is missing; without it nobody knows which part {file.path} holds; name the "
                    "folder of the strategy files, or a file that merges them"
                )
    return found


def assemble(files: Files, stages: Stages) -> Assembled:
    """Plan the whole tensors of a checkpoint; ranks that come first are preferred among equals.

    Args:
        files: By rank; a rank may be missing where others hold the same slices.
        stages: From `read_stages`; empty for what one process wrote whole.

    Raises:
        WeightError: Tensors are not covered by the strategy, absent, incomplete, or differ in dtype or shape
            between ranks; all are named. Or ranks that should hold equal slices mostly do not.
        FormatError: The ranks do not fit the strategy's devices.
    """
    if not stages:
        return _take_whole(files)
    sizes = {stage: next(iter(layouts.values())).num_devices() for stage, layouts in stages.items()}
    _check_devices(files, stages, sizes)
    result = Assembled({}, {})
    problems: list[str] = []
    first_rank = 0
    for stage in range(max(stages) + 1):
        ranks = range(first_rank, first_rank + sizes[stage])
        members = _Stage(first_rank, {rank: file for rank, file in files.items() if rank in ranks})
        problems += _collect_run_state(members, stages[stage], result)
        problems += _assemble_stage(members, stages[stage], result)
        first_rank += sizes[stage]
    if problems:
        shown = "; ".join(problems[:MAX_NAMED])
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        where = files[min(files)].path
        raise WeightError(f"{where} and the other ranks' files cannot be put together: {shown}{more}")
    check_samples(files, stages)
    return result


@dataclass(frozen=True, slots=True)
class _Stage:
    """The files of one pipeline stage."""

    first_rank: int
    """Number of its first rank in the whole layout."""
    files: dict[int, SafetensorsFile]
    """The files by that number; a rank may be missing."""


def _take_whole(files: Files) -> Assembled:
    """Return the tensors of the only file, which one process wrote whole."""
    if len(files) != 1:
        raise FormatError(f"{len(files)} ranks cannot be merged without --src-strategy-dirs")
    (file,) = files.values()
    result = Assembled({}, {})
    for name, info in file.tensors.items():
        if not name.startswith(DROPPED_PREFIX):
            target = result.run_state if math.prod(info.shape) == 1 else result.tensors
            target[name] = from_file(file, name)
    return result


def _check_devices(files: Files, stages: Stages, sizes: dict[int, int]) -> None:
    """Raise FormatError where stages lack, disagree about their devices, or are fewer than the files need."""
    absent = [str(stage) for stage in range(max(stages) + 1) if stage not in stages]
    if absent:
        raise FormatError(
            f"the strategy lacks stage {', '.join(absent)}; copy the strategy files of every stage"
        )
    for stage, layouts in stages.items():
        uneven = [name for name, layout in layouts.items() if layout.num_devices() != sizes[stage]]
        if uneven:
            raise FormatError(
                f"stage {stage} of the strategy has {counted(sizes[stage], 'device')}, but not for "
                f"{uneven[0]}"
            )
    total = sum(sizes.values())
    beyond = [rank for rank in files if rank >= total]
    if beyond:
        raise FormatError(
            f"the strategy is for {counted(total, 'device')}, but there is a rank_{beyond[0]}; "
            "it is of another run or lacks stages"
        )


def _collect_run_state(
    members: _Stage, layouts: Mapping[str, TensorLayout], result: Assembled
) -> Iterator[str]:
    """Put the run's scalars into `result`; yield a sentence for each other tensor without a layout."""
    seen: set[str] = set()
    for rank, file in members.files.items():
        for name, info in file.tensors.items():
            if name in layouts or name.startswith(DROPPED_PREFIX):
                continue
            if math.prod(info.shape) == 1:
                own = from_file(file, name)
                first = result.run_state.setdefault(name, own)
                if name in COUNTERS and not (first.plan == own.plan and equal_rows(first.rows, own.rows)):
                    yield (
                        f"{name} in rank_{rank} is not that of the ranks before it; "
                        "they are at different steps"
                    )
            elif name not in seen:
                seen.add(name)
                yield f"{name} in rank_{rank} is not in the strategy of its stage"


def _assemble_stage(members: _Stage, layouts: Mapping[str, TensorLayout], result: Assembled) -> Iterator[str]:
    """Put a stage's whole tensors into `result`; yield a sentence for each that cannot be put together."""
    for name, layout in layouts.items():
        holders = {rank: file for rank, file in members.files.items() if name in file.tensors}
        if not holders:
            yield f"{name} is in the strategy but in no rank's file"
            continue
        try:
            tensor = _assemble_tensor(name, layout, holders, members.first_rank)
        except WeightError as error:
            yield str(error)
            continue
        earlier = result.tensors.get(name)
        if earlier is None:
            result.tensors[name] = tensor
        elif earlier.plan != tensor.plan:
            yield f"{name} is {earlier.plan.shape} in one stage and {tensor.plan.shape} in another"
        else:
            result.stage_twins.append((earlier, tensor))
    devices = next(iter(layouts.values())).num_devices()
    ranks = range(members.first_rank, members.first_rank + devices)
    if absent := [f"rank_{rank}" for rank in ranks if rank not in members.files]:
        result.notes.append(f"{', '.join(absent)} missing; ranks with the same slices were used")


def _assemble_tensor(
    name: str, layout: TensorLayout, holders: Mapping[int, SafetensorsFile], first_rank: int
) -> LazyTensor:
    """Return one tensor out of its slices.

    Args:
        name: The tensor's name.
        layout: How the strategy says it was cut.
        holders: Files that have a slice of it, by rank.
        first_rank: The stage's first rank, from which the layout counts its devices.

    Raises:
        WeightError: Slices are missing or differ in dtype or shape.
    """
    first_holder, first_file = next(iter(holders.items()))
    first = first_file.tensors[name]
    for rank, file in holders.items():
        info = file.tensors[name]
        if (info.dtype, info.shape) != (first.dtype, first.shape):
            raise WeightError(
                f"{name} is {first.dtype} {first.shape} in rank_{first_holder} "
                f"but {info.dtype} {info.shape} in rank_{rank}"
            )
    splits, pieces = layout.splits(), layout.optimizer_pieces()
    if len(splits) != len(first.shape):
        raise WeightError(f"{name} has {len(first.shape)} dimensions, the strategy describes {len(splits)}")
    if any(parts > 1 for parts in splits[2:]):
        raise WeightError(f"{name} is cut along dimension 2 or beyond, which no Qwen3 weight is")
    # Where several ranks have the same slice, the first is read.
    rows_of: dict[Slice, FileRows] = {}
    for rank, file in holders.items():
        slice_ = layout.slice_of(rank - first_rank)
        if slice_ not in rows_of:
            rows_of[slice_] = FileRows(file, name)
    source = _join_slices(name, layout, rows_of, first_rank)
    shape = list(first.shape)
    for dim, parts in enumerate(splits):
        shape[dim] *= parts * (pieces if dim == 0 else 1)
    return LazyTensor(TensorPlan(name, first.dtype, tuple(shape)), source)


Slice = tuple[tuple[int, ...], int]
"""The number of the part along each dimension, and that of the optimizer's piece within this slice."""


def _join_slices(
    name: str, layout: TensorLayout, rows_of: Mapping[Slice, FileRows], first_rank: int
) -> RowSource:
    """Return all rows of a tensor: bands of rows one below the other, each of slices side by side.

    Raises:
        WeightError: A slice is in no file; its ranks are named.
    """
    splits = layout.splits()
    rest = (0,) * max(len(splits) - 2, 0)
    bands: list[RowSource] = []
    for row_number in range(splits[0] if splits else 1):
        for piece in range(layout.optimizer_pieces()):
            columns: list[RowSource] = []
            for column_number in range(splits[1] if len(splits) > 1 else 1):
                parts = ((row_number, column_number, *rest))[: len(splits)]
                if (parts, piece) not in rows_of:
                    owners = [r for r in range(layout.num_devices()) if layout.slice_of(r) == (parts, piece)]
                    named = " or ".join(f"rank_{first_rank + rank}" for rank in owners)
                    raise WeightError(f"{name}: the slice of {named or 'no rank'} is missing")
                columns.append(rows_of[parts, piece])
            bands.append(columns[0] if len(columns) == 1 else JoinedColumns(columns))
    return bands[0] if len(bands) == 1 else StackedRows(bands)


def cut_of(layout: TensorLayout, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return into how many parts each dimension is cut, and the number of the part that is `rank`'s slice.

    Pieces of replicas count as a cut of dimension 0, which strategy files state in one of two ways.
    """
    parts, piece = layout.slice_of(rank % layout.num_devices())
    splits, pieces = layout.splits(), layout.optimizer_pieces()
    return (splits[0] * pieces, *splits[1:]), (parts[0] * pieces + piece, *parts[1:])
