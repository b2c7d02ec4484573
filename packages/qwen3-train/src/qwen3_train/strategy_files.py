"""The strategy file of a rank: how each of its tensors is cut, in MindSpore's own format."""

from collections.abc import Sequence
from pathlib import Path

from qwen3_model.config import Qwen3Config
from qwen3_model.layout import Layout, placement
from qwen3_model.strategy import TensorLayout, write_strategy
from qwen3_train.stages import is_shared_out, stage_weights

MOMENTS = ("adam_m.", "adam_v.")


def write_strategies(
    output_dir: Path,
    layout: Layout,
    config: Qwen3Config,
    rank: int,
    *,
    offset: Sequence[int] = (),
    shares_moments: bool = False,
) -> Path:
    """Write `strategy/ckpt_strategy_rank_R.ckpt` for the weights of the rank and their moments."""
    stage, _, _ = layout.place(rank)
    shapes = stage_weights(config, layout, offset, stage)
    layouts = {name: tensor_layout(name, layout) for name in shapes}
    for moment in MOMENTS:
        for name, shape in shapes.items():
            is_cut = shares_moments and is_shared_out(shape, layout.dp)
            layouts[f"{moment}{name}"] = tensor_layout(name, layout, is_cut=is_cut)
    path = output_dir / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_strategy(path, stage, layouts)
    return path


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
