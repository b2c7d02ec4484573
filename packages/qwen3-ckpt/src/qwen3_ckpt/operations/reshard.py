"""Cut whole tensors anew: a checkpoint for another number of replicas, shards or stages.

Writes what a training run under the new layout would have written:
    checkpoint/rank_R/qwen3_rank_R-E_S.safetensors, meta.json
    strategy/ckpt_strategy_rank_R.ckpt
    config.json and tokenizer files, where the source has them
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3_ckpt.sources.placements import Cut, bare_name, stage_of, tensor_layout
from qwen3_ckpt.sources.sources import find_model_files, output_of, sources_of
from qwen3_model.checkpoints.rows import LazyTensor, PickedColumns, PickedRows, RowSource, Run
from qwen3_model.checkpoints.safetensors_file import TensorPlan, write_safetensors
from qwen3_model.checkpoints.strategy import TensorLayout, write_strategy
from qwen3_model.checkpoints.weight_files import Checkpoint
from qwen3_model.command.files import refuse_existing
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout

MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class _Rank:
    stage: int
    local: int
    """Rank within its stage."""


def without_optimizer(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint without moments and without the run's counters: weights for another run."""
    weights = {name: tensor for name, tensor in checkpoint.tensors.items() if bare_name(name) == name}
    return replace(checkpoint, tensors=weights, run_state={})


def reshard(
    checkpoint: Checkpoint, cut: Cut, output_dir: Path, *, hf_dir: Path | None, force: bool, quiet: bool
) -> int:
    """Write the checkpoint under another layout and return the number of ranks.

    Raises:
        ConfigError: A tensor does not divide, heads would be torn, or there are fewer layers than stages.
        WeightError: The layout cuts no tensor of this name.
        OutputExistsError: `output_dir` is there and `force` is false.
    """
    model = find_model_files(checkpoint.path, hf_dir)
    config = model.config if model else None
    sources = sources_of([checkpoint.path, checkpoint.strategy], [checkpoint], model)
    refuse_existing(output_dir, force=force, sources=sources.all_paths())
    layouts = {name: tensor_layout(tensor.plan, cut) for name, tensor in checkpoint.tensors.items()}
    _check(checkpoint, cut.layout, config, layouts)
    stages = _share_out(checkpoint, cut, config)
    needed = sum(
        _slice(checkpoint.tensors[name], layouts[name], rank.local).plan.size_bytes
        for rank in _ranks(cut.layout)
        for name in stages[rank.stage]
    )
    with output_of(sources, output_dir, needed, force=force, quiet=quiet, label="reshard") as (
        folder,
        progress,
    ):
        for number, rank in enumerate(_ranks(cut.layout)):
            own = {name: layouts[name] for name in stages[rank.stage]}
            write_strategy(folder / "strategy" / f"ckpt_strategy_rank_{number}.ckpt", rank.stage, own)
            _write_rank(folder, number, rank, checkpoint, own, cut, progress.advance)
        if model:
            model.copy(folder)
    return cut.layout.num_ranks


def _ranks(layout: Layout) -> Iterator[_Rank]:
    devices = layout.dp * layout.tp
    for rank in range(layout.num_ranks):
        yield _Rank(rank // devices, rank % devices)


def _check(
    checkpoint: Checkpoint, layout: Layout, config: Qwen3Config | None, layouts: dict[str, TensorLayout]
) -> None:
    if config and config.num_kv_heads % layout.tp:
        raise ConfigError(
            f"model_parallel={layout.tp} does not divide the model's {config.num_kv_heads} key/value heads"
        )
    torn = []
    for name, tensor in checkpoint.tensors.items():
        for size, parts in zip(tensor.plan.shape, layouts[name].splits(), strict=True):
            if size % parts:
                torn.append(f"{name} of {tensor.plan.shape} by {parts}")
    if torn:
        more = f" and {len(torn) - MAX_NAMED} more" if len(torn) > MAX_NAMED else ""
        raise ConfigError(f"these tensors do not divide: {'; '.join(torn[:MAX_NAMED])}{more}")


def _share_out(checkpoint: Checkpoint, cut: Cut, config: Qwen3Config | None) -> list[list[str]]:
    """Return the tensors of each stage, in the source's order; a tied embedding is on the first and last."""
    bare = {bare_name(name) for name in checkpoint.tensors}
    has_head = bool(bare & {"lm_head.weight", "output_layer.weight"})
    is_tied = config.tie_word_embeddings if config else not has_head
    stages: list[list[str]] = [[] for _ in range(cut.layout.pp)]
    for name in checkpoint.tensors:
        for stage in stage_of(name, cut, is_tied=is_tied):
            stages[stage].append(name)
    return stages


def _write_rank(
    folder: Path,
    number: int,
    rank: _Rank,
    checkpoint: Checkpoint,
    layouts: dict[str, TensorLayout],
    cut: Cut,
    count: Callable[[float], None],
) -> None:
    rank_dir = folder / "checkpoint" / f"rank_{number}"
    rank_dir.mkdir(parents=True)
    entries = []
    for name, layout in layouts.items():
        if cut.remove_redundancy and _first_holder(layout, rank.local) != rank.local:
            continue
        part = _slice(checkpoint.tensors[name], layout, rank.local)
        entries.append((part.plan, part.pieces(count)))
    entries += [(tensor.plan, tensor.pieces()) for tensor in checkpoint.run_state.values()]
    metadata = checkpoint.first.metadata | {"format": "ms", "remove_redundancy": str(cut.remove_redundancy)}
    file_name = f"qwen3_rank_{number}-{checkpoint.suffix}.safetensors"
    write_safetensors(rank_dir / file_name, entries, metadata)
    epoch, step = map(int, checkpoint.suffix.split("_"))
    meta = {"last_epoch": epoch, "last_step": step, "last_ckpt_file": file_name}
    (rank_dir / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _first_holder(layout: TensorLayout, local: int) -> int:
    return next(
        rank for rank in range(layout.num_devices()) if layout.slice_of(rank) == layout.slice_of(local)
    )


def _slice(tensor: LazyTensor, layout: TensorLayout, local: int) -> LazyTensor:
    """Return what the rank `local` of a stage holds of a tensor."""
    parts, piece = layout.slice_of(local)
    plan, rows = tensor.plan, tensor.rows
    shape = [size // split for size, split in zip(plan.shape, layout.splits(), strict=True)]
    source: RowSource = rows
    if shape:
        shape[0] //= layout.optimizer_pieces()
        first = (parts[0] * layout.optimizer_pieces() + piece) * shape[0]
        if shape[0] != plan.shape[0]:
            source = PickedRows(source, [Run(first, first + shape[0])])
    if len(shape) > 1 and shape[1] != plan.shape[1]:
        width = rows.row_bytes // layout.splits()[1]
        source = PickedColumns(source, parts[1] * width, (parts[1] + 1) * width)
    return LazyTensor(TensorPlan(plan.name, plan.dtype, tuple(shape)), source)
