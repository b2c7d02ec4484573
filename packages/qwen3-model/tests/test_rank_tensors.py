"""Parts of tensors out of the files of any layout, against the whole tensor cut by hand."""

import numpy as np
import pytest

from qwen3_model.checkpoints.rank_tensors import open_rank_tensors
from qwen3_model.checkpoints.safetensors_file import TensorPlan, write_safetensors
from qwen3_model.checkpoints.strategy import TensorLayout, write_strategy
from qwen3_model.errors import ConfigError, WeightError

WHOLE = np.arange(48, dtype=np.float32).reshape(8, 6)
NAME = "model.layers.0.mlp.up_proj.weight"


def write_ranks(folder, layout, parts):
    files = {}
    for rank, part in parts.items():
        path = folder / "checkpoint" / f"rank_{rank}" / f"qwen3_rank_{rank}-1_2.safetensors"
        path.parent.mkdir(parents=True)
        write_safetensors(path, [(TensorPlan(NAME, "F32", part.shape), [part])], {"format": "ms"})
        (folder / "strategy").mkdir(exist_ok=True)
        write_strategy(folder / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt", 0, {NAME: layout})
        files[rank] = path
    return files


LAYOUTS = {
    "rows": (TensorLayout(dev_matrix=(1, 2), tensor_map=(0, -1)), lambda r: WHOLE[4 * r : 4 * r + 4]),
    "columns": (TensorLayout(dev_matrix=(1, 2), tensor_map=(-1, 0)), lambda r: WHOLE[:, 3 * r : 3 * r + 3]),
    "replicas": (TensorLayout(dev_matrix=(2, 1), tensor_map=(-1, -1)), lambda r: WHOLE),
    "moments of replicas": (
        TensorLayout(dev_matrix=(2, 1), tensor_map=(-1, -1), opt_shard_step=1, opt_shard_size=2),
        lambda r: WHOLE[4 * r : 4 * r + 4],
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(
    "wanted", [(slice(0, 8), slice(0, 6)), (slice(2, 6), slice(0, 6)), (slice(1, 3), slice(2, 5))]
)
def test_any_part_comes_out_of_any_layout(tmp_path, kind, wanted):
    layout, part = LAYOUTS[kind]
    tensors = open_rank_tensors(write_ranks(tmp_path, layout, {rank: part(rank) for rank in (0, 1)}))
    assert tensors.shape(NAME) == (8, 6)
    dtype, values = tensors.read(NAME, wanted)
    assert dtype == "F32"
    np.testing.assert_array_equal(values, WHOLE[wanted])


def test_shards_whose_moments_replicas_share_out(tmp_path):
    layout = TensorLayout(dev_matrix=(2, 2), tensor_map=(0, -1), opt_shard_step=2, opt_shard_size=2)
    # Rank = replica * 2 + shard: shard 0 has rows 0 to 3, of which replica 1 has rows 2 and 3.
    firsts = {0: 0, 1: 4, 2: 2, 3: 6}
    parts = {rank: WHOLE[first : first + 2] for rank, first in firsts.items()}
    tensors = open_rank_tensors(write_ranks(tmp_path, layout, parts))
    np.testing.assert_array_equal(tensors.read(NAME, (slice(0, 8), slice(0, 6)))[1], WHOLE)


def test_a_missing_strategy_is_named(tmp_path):
    layout, part = LAYOUTS["rows"]
    files = write_ranks(tmp_path, layout, {rank: part(rank) for rank in (0, 1)})
    (tmp_path / "strategy" / "ckpt_strategy_rank_1.ckpt").unlink()
    with pytest.raises(ConfigError, match=r"ckpt_strategy_rank_1\.ckpt is missing"):
        open_rank_tensors(files)


def test_a_part_that_no_rank_has_is_refused(tmp_path):
    whole = TensorLayout(dev_matrix=(1, 3), tensor_map=(0, -1))
    files = write_ranks(tmp_path, whole, {0: WHOLE[:2], 1: WHOLE[2:4]})
    with pytest.raises(WeightError, match="the slice of rank_2 is missing"):
        open_rank_tensors(files)
