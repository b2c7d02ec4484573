"""The strategy file of a rank: how each of its tensors is cut, in MindSpore's own format."""

from pathlib import Path

from qwen3_model.config import Qwen3Config
from qwen3_model.layout import Layout, placement
from qwen3_model.strategy import TensorLayout, write_strategy

MOMENTS = ("adam_m.", "adam_v.")


def write_strategies(output_dir: Path, layout: Layout, config: Qwen3Config, rank: int) -> Path:
    """Write `strategy/ckpt_strategy_rank_R.ckpt` for the weights of the rank and their moments."""
    stage, _, _ = layout.place(rank)
    layouts = {name: tensor_layout(name, layout) for name in config.weight_shapes()}
    layouts |= {f"{moment}{name}": cut for moment in MOMENTS for name, cut in list(layouts.items())}
    path = output_dir / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_strategy(path, stage, layouts)
    return path


def tensor_layout(name: str, layout: Layout) -> TensorLayout:
    """Return how the weight `name` lies on the grid of replicas x shards of its stage."""
    # A tensor map counts the grid's axes from the right: 0 is the shards, -1 is not cut.
    tensor_map = tuple(0 if axis == "tp" else -1 for axis in placement(name))
    return TensorLayout(dev_matrix=(layout.dp, layout.tp), tensor_map=tensor_map)
