"""Put the slices that the ranks hold together into whole tensors, lazily; refuse what does not fit."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qwen3_ckpt.rank_files import RankFiles
from qwen3_ckpt.rows import FileRows, JoinedColumns, LazyTensor, RowSource, StackedRows, from_file
from qwen3_ckpt.strategies import Stages
from qwen3_model.errors import FormatError, WeightError
from qwen3_model.safetensors_file import SafetensorsFile, TensorPlan
from qwen3_model.strategy import TensorLayout

MAX_NAMED = 8
# Gradients that are still being accumulated belong to no checkpoint.
DROPPED_PREFIX = "accu_grads"
COUNTERS = ("epoch_num", "step_num", "global_step")


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


@dataclass(frozen=True, slots=True)
class _Holder:
    rank: int
    file: SafetensorsFile


def assemble(ranks: RankFiles, stages: Stages) -> Assembled:
    """Plan the whole tensors of a checkpoint.

    Raises:
        WeightError: Tensors are not covered by the strategy, absent, incomplete, or differ in dtype or shape
            between ranks; all are named.
        FormatError: The ranks do not fit the strategy's devices.
    """
    sizes = {stage: next(iter(layouts.values())).num_devices() for stage, layouts in stages.items()}
    _check_devices(ranks, stages, sizes)
    result = Assembled({}, {}, list(ranks.notes))
    problems: list[str] = []
    first_rank = 0
    for stage in range(max(stages) + 1):
        members = [
            _Holder(rank - first_rank, file)
            for rank, file in ranks.files.items()
            if first_rank <= rank < first_rank + sizes[stage]
        ]
        problems += _uncovered(members, stages[stage], first_rank, result)
        problems += _assemble_stage(members, stages[stage], first_rank, result)
        first_rank += sizes[stage]
    if problems:
        shown = "; ".join(problems[:MAX_NAMED])
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise WeightError(f"step {ranks.suffix} cannot be merged: {shown}{more}")
    return result


def without_strategy(ranks: RankFiles) -> Assembled:
    """Return the tensors of a checkpoint that one process wrote whole.

    Raises:
        FormatError: There are several ranks, which cannot be merged without a strategy.
    """
    if len(ranks.files) != 1:
        raise FormatError(f"{len(ranks.files)} ranks cannot be merged without --src-strategy-dirs")
    (file,) = ranks.files.values()
    result = Assembled({}, {}, list(ranks.notes))
    for name, info in file.tensors.items():
        if not name.startswith(DROPPED_PREFIX):
            place = result.run_state if math.prod(info.shape) == 1 else result.tensors
            place[name] = from_file(file, name)
    return result


def _check_devices(ranks: RankFiles, stages: Stages, sizes: dict[int, int]) -> None:
    absent = [str(stage) for stage in range(max(stages) + 1) if stage not in stages]
    if absent:
        raise FormatError(
            f"the strategy lacks stage {', '.join(absent)}; copy the strategy files of every stage"
        )
    for stage, layouts in stages.items():
        uneven = [name for name, layout in layouts.items() if layout.num_devices() != sizes[stage]]
        if uneven:
            raise FormatError(
                f"stage {stage} of the strategy has {sizes[stage]} devices, but not for {uneven[0]}"
            )
    total = sum(sizes.values())
    beyond = [rank for rank in ranks.files if rank >= total]
    if beyond:
        raise FormatError(
            f"the strategy is for {total} devices, but there is a rank_{beyond[0]}; "
            "it is of another run or lacks stages"
        )


def _uncovered(
    members: list[_Holder], layouts: dict[str, TensorLayout], first_rank: int, result: Assembled
) -> Iterator[str]:
    """Collect the run's scalars; yield a sentence for each other tensor that the strategy does not know."""
    seen: set[str] = set()
    for holder in members:
        for name, info in holder.file.tensors.items():
            if name in layouts or name.startswith(DROPPED_PREFIX):
                continue
            where = f"rank_{first_rank + holder.rank}"
            if math.prod(info.shape) == 1:
                first = result.run_state.setdefault(name, from_file(holder.file, name))
                if name in COUNTERS and not _same_bytes(first, from_file(holder.file, name)):
                    yield f"{name} in {where} is not that of the ranks before it; they are at different steps"
            elif name not in seen:
                seen.add(name)
                yield f"{name} in {where} is not in the strategy of its stage"


def _same_bytes(a: LazyTensor, b: LazyTensor) -> bool:
    return a.plan == b.plan and bool(
        (a.rows.read(0, a.rows.num_rows) == b.rows.read(0, b.rows.num_rows)).all()
    )


def _assemble_stage(
    members: list[_Holder], layouts: dict[str, TensorLayout], first_rank: int, result: Assembled
) -> Iterator[str]:
    for name, layout in layouts.items():
        holders = [holder for holder in members if name in holder.file.tensors]
        if not holders:
            yield f"{name} is in the strategy but in no rank's file"
            continue
        try:
            tensor = _assemble_tensor(name, layout, holders, first_rank)
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
    result.notes += _twin_notes(members, layouts, first_rank)


def _assemble_tensor(name: str, layout: TensorLayout, holders: list[_Holder], first_rank: int) -> LazyTensor:
    first = holders[0].file.tensors[name]
    for holder in holders:
        info = holder.file.tensors[name]
        if (info.dtype, info.shape) != (first.dtype, first.shape):
            raise WeightError(
                f"{name} is {first.dtype} {first.shape} in rank_{first_rank + holders[0].rank} "
                f"but {info.dtype} {info.shape} in rank_{first_rank + holder.rank}"
            )
    splits, pieces = layout.splits(), layout.optimizer_pieces()
    if len(splits) != len(first.shape):
        raise WeightError(f"{name} has {len(first.shape)} dimensions, the strategy describes {len(splits)}")
    if any(parts > 1 for parts in splits[2:]):
        raise WeightError(f"{name} is cut along dimension 2 or beyond, which no Qwen3 weight is")
    by_slice = {layout.place(holder.rank): holder.file for holder in reversed(holders)}
    rows_of = {key: FileRows(file, name) for key, file in by_slice.items()}
    source = _grid(name, splits, pieces, rows_of, layout, first_rank)
    shape = list(first.shape)
    for dim, parts in enumerate(splits):
        shape[dim] *= parts * (pieces if dim == 0 else 1)
    return LazyTensor(TensorPlan(name, first.dtype, tuple(shape)), source)


def _grid(
    name: str,
    splits: tuple[int, ...],
    pieces: int,
    rows_of: dict[tuple[tuple[int, ...], int], FileRows],
    layout: TensorLayout,
    first_rank: int,
) -> RowSource:
    """Stack the slices of dimension 0, each joined from those of dimension 1."""
    rest = (0,) * max(len(splits) - 2, 0)
    bands: list[RowSource] = []
    for row_part in range(splits[0] if splits else 1):
        for piece in range(pieces):
            columns: list[RowSource] = []
            for column_part in range(splits[1] if len(splits) > 1 else 1):
                parts = ((row_part, column_part, *rest))[: len(splits)]
                if (parts, piece) not in rows_of:
                    owners = [r for r in range(layout.num_devices()) if layout.place(r) == (parts, piece)]
                    named = " or ".join(f"rank_{first_rank + rank}" for rank in owners)
                    raise WeightError(f"{name}: the slice of {named or 'no rank'} is missing")
                columns.append(rows_of[parts, piece])
            bands.append(columns[0] if len(columns) == 1 else JoinedColumns(columns))
    return bands[0] if len(bands) == 1 else StackedRows(bands)


def _twin_notes(members: list[_Holder], layouts: dict[str, TensorLayout], first_rank: int) -> Iterable[str]:
    """Say which absent ranks were replaced by one that holds the same slices."""
    present = {holder.rank for holder in members}
    devices = next(iter(layouts.values())).num_devices()
    absent = [f"rank_{first_rank + rank}" for rank in range(devices) if rank not in present]
    if absent:
        yield f"{', '.join(absent)} missing; ranks with the same slices were used"
