"""The strategy file of a rank: how each of its tensors is cut, in MindSpore's own format."""

import math
from collections.abc import Sequence
from pathlib import Path

from qwen3_model.checkpoints.fused import MOMENTS
from qwen3_model.checkpoints.rank_tensors import cut_of, strategy_path
from qwen3_model.checkpoints.strategy import TensorLayout, read_strategy, write_strategy
from qwen3_model.command.plain_text import counted
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout, placement
from qwen3_train.layout.stages import is_cut_by_rows, stage_weights
from qwen3_train.settings.lora import LoraSettings, stage_trained
from qwen3_train.settings.run import TrainSettings


def write_strategies(
    output_dir: Path,
    layout: Layout,
    config: Qwen3Config,
    rank: int,
    *,
    offset: Sequence[int] = (),
    shares_moments: bool = False,
    lora: LoraSettings | None = None,
) -> Path:
    """Write `strategy/ckpt_strategy_rank_R.ckpt` for the trained weights of the rank and their moments."""
    stage, layouts = rank_layouts(
        layout, config, rank, offset=offset, shares_moments=shares_moments, lora=lora
    )
    path = strategy_path(output_dir, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_strategy(path, stage, layouts)
    return path


def rank_layouts(
    layout: Layout,
    config: Qwen3Config,
    rank: int,
    *,
    offset: Sequence[int],
    shares_moments: bool,
    lora: LoraSettings | None = None,
) -> tuple[int, dict[str, TensorLayout]]:
    """Return the rank's stage, and how its trained weights and their moments are cut."""
    stage, _, _ = layout.coordinates(rank)
    tensors = stage_tensors(layout, config, stage, offset=offset, shares_moments=shares_moments, lora=lora)
    return stage, {name: cut for name, (cut, _) in tensors.items()}


def stage_tensors(
    layout: Layout,
    config: Qwen3Config,
    stage: int,
    *,
    offset: Sequence[int],
    shares_moments: bool,
    lora: LoraSettings | None = None,
) -> dict[str, tuple[TensorLayout, int]]:
    """Return how a stage's trained weights and their moments are cut, and the elements of a rank's slice."""
    if lora is None:
        shapes = stage_weights(config, layout, offset, stage)
    else:
        shapes = stage_trained(lora, config, layout, offset, stage)
    tensors = {name: (tensor_layout(name, layout), math.prod(shape)) for name, shape in shapes.items()}
    for moment in MOMENTS:
        for name, shape in shapes.items():
            # What is cut by elements, which no strategy file can say, is put together for the checkpoint.
            is_cut = shares_moments and is_cut_by_rows(shape, layout.dp)
            size = math.prod(shape) // (layout.dp if is_cut else 1)
            tensors[f"{moment}{name}"] = tensor_layout(name, layout, is_cut=is_cut), size
    return tensors


def refuse_other_layout(settings: TrainSettings) -> None:
    """Raise ConfigError when the run in `output_dir` was cut otherwise than `settings` would cut it.

    Its files would then be mixed with those of the new layout.
    """
    folder = settings.output_dir
    paths = list((folder / "strategy").glob("ckpt_strategy_rank_*.ckpt"))
    layout = settings.layout
    is_same = not paths or len(paths) == layout.num_ranks
    for rank in range(layout.num_ranks if paths and is_same else 0):
        found_stage, found = read_strategy(strategy_path(folder, rank))
        stage, wanted = rank_layouts(
            layout, settings.model, rank, offset=settings.offset,
            shares_moments=settings.parallel_optimizer, lora=settings.lora,
        )  # fmt: skip
        # A run of adapters beside one of the whole model has other names, which is found later.
        both = wanted.keys() & found.keys()
        is_same &= stage == found_stage and (not both or wanted.keys() == found.keys())
        is_same &= all(cut_of(found[name], rank) == cut_of(wanted[name], rank) for name in both)
    if not is_same:
        raise ConfigError(
            f"{folder} holds a run of another layout ({counted(len(paths), 'rank')}); to go on under this "
            "one give a "
            f"new --output_dir and --load_checkpoint {folder}"
        )


def tensor_layout(name: str, layout: Layout, *, is_cut: bool = False) -> TensorLayout:
    """Return how a tensor like the weight `name` lies on the grid of replicas x shards of its stage.

    With `is_cut` the replicas share out the rows of each slice.
    """
    # A tensor map counts the grid's axes from the right: 0 is the shards, -1 is not cut.
    tensor_map = tuple(0 if axis == "tp" else -1 for axis in placement(name))
    step, size = (layout.tp, layout.dp) if is_cut else (0, 0)
    return TensorLayout(
        dev_matrix=(layout.dp, layout.tp), tensor_map=tensor_map, opt_shard_step=step, opt_shard_size=size
    )
