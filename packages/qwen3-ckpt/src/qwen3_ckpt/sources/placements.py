"""Where each tensor of a checkpoint goes under a layout: weights, adapters, moments."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3_model.checkpoints.fused import split_name
from qwen3_model.checkpoints.safetensors_file import TensorPlan
from qwen3_model.checkpoints.strategy import TensorLayout
from qwen3_model.errors import ConfigError, WeightError
from qwen3_model.ranks.layout import Layout, placement

LAYER = re.compile(r"(?:model|decoder)\.layers\.(\d+)\..+")
MOMENT = re.compile(r"adam_[mv]\.")
ADAPTER = re.compile(r"(.+)\.lora_([AB])\.weight")
EMBEDDINGS = ("embed_tokens", "word_embeddings")


@dataclass(frozen=True, slots=True)
class Cut:
    """A layout and what else decides which rank holds what."""

    layout: Layout
    stage_layers: tuple[int, ...]
    """Decoder layers of each stage."""
    shard_optimizer: bool = False
    """Whether the replicas share out the moments (ZeRO-1)."""
    remove_redundancy: bool = False
    """Whether a slice is written by its first holder alone."""


def make_cut(
    names: Sequence[str],
    layout: Layout,
    offset: Sequence[int],
    *,
    shard_optimizer: bool,
    remove_redundancy: bool,
) -> Cut:
    """Return the cut for a checkpoint of these tensors.

    Args:
        names: All tensors.
        layout: The grid.
        offset: One shift of the number of layers per stage, as mindformers' `offset`; empty for none.
        shard_optimizer: See `Cut`.
        remove_redundancy: See `Cut`.

    Raises:
        ConfigError: The layers do not divide over the stages.
    """
    layers = 1 + max(
        (int(match[1]) for name in names if (match := LAYER.fullmatch(bare_name(name)))), default=-1
    )
    shifts = tuple(offset) or (0,) * layout.pp
    counts = tuple(layers // layout.pp + shift for shift in shifts)
    if len(counts) != layout.pp or sum(counts) != layers or min(counts) < 1:
        raise ConfigError(
            f"{layers} layers do not divide over pipeline_stage={layout.pp} with offset {list(shifts)}; "
            "give an --offset of one number a stage, such that each has a layer and all layers have a stage"
        )
    return Cut(layout, counts, shard_optimizer, remove_redundancy)


def bare_name(name: str) -> str:
    """Return the weight that a moment belongs to, or the name itself."""
    return MOMENT.sub("", name, count=1) if MOMENT.match(name) else name


def stage_of(name: str, cut: Cut, *, is_tied: bool) -> list[int]:
    """Return the stages that hold a tensor: one, but for a tied embedding."""
    bare, last = bare_name(name), cut.layout.pp - 1
    if match := LAYER.fullmatch(bare):
        ends = [sum(cut.stage_layers[: stage + 1]) for stage in range(cut.layout.pp)]
        return [next(stage for stage, end in enumerate(ends) if int(match[1]) < end)]
    if "embed" in bare:
        return sorted({0, last}) if is_tied else [0]
    return [last]


def tensor_layout(plan: TensorPlan, cut: Cut) -> TensorLayout:
    """Return how a tensor is cut.

    Raises:
        WeightError: The name is none of a model, its adapters or moments, or it has other dimensions.
    """
    axes = _axes(bare_name(plan.name), plan.name)
    if len(axes) != len(plan.shape):
        raise WeightError(f"{plan.name} has {len(plan.shape)} dimensions, expected {len(axes)}")
    tensor_map = tuple(0 if axis == "tp" else -1 for axis in axes)
    dp, tp = cut.layout.dp, cut.layout.tp
    rows = plan.shape[0] // (tp if tensor_map[0] == 0 else 1)
    is_moment = bare_name(plan.name) != plan.name
    pieces = dp if cut.shard_optimizer and is_moment and dp > 1 and rows % dp == 0 else 0
    return TensorLayout(
        dev_matrix=(dp, tp), tensor_map=tensor_map, opt_shard_step=tp if pieces else 0, opt_shard_size=pieces
    )


def _axes(bare: str, name: str) -> tuple[str | None, ...]:
    try:
        if match := ADAPTER.fullmatch(bare):
            out_axis, in_axis = placement(split_name(f"{match[1]}.weight")[0])
            if match[1].endswith(EMBEDDINGS):  # its A has a column a token
                out_axis, in_axis = in_axis, out_axis
            # The half that touches the split dimension of its weight is split with it.
            return (None, in_axis) if match[2] == "A" else (out_axis, None)
        return placement(split_name(bare)[0])
    except (ConfigError, ValueError):
        raise WeightError(f"{name} is no tensor of a Qwen3 model, so nothing says how to cut it") from None
