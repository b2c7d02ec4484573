import numpy as np
import pytest

from qwen3_model.config import SIZES
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout, placement, shard_slices


def test_every_weight_of_every_size_has_exactly_one_place():
    for config in SIZES.values():
        for name, shape in config.weight_shapes().items():
            assert len(placement(name)) == len(shape), name


def test_rows_of_projections_into_heads_and_columns_of_those_out_of_them_are_split():
    assert placement("model.layers.3.self_attn.q_proj.weight") == ("tp", None)
    assert placement("model.layers.3.self_attn.o_proj.weight") == (None, "tp")
    assert placement("model.layers.3.self_attn.q_norm.weight") == (None,)


def test_a_stranger_has_no_place():
    with pytest.raises(ConfigError, match="matches 0 placement rules"):
        placement("model.layers.0.self_attn.q_proj.bias")


def test_shards_put_together_are_the_weight():
    for name in ("model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"):
        whole = np.arange(32).reshape(4, 8)
        parts = [whole[shard_slices(name, whole.shape, tp=4, shard=i)] for i in range(4)]
        axis = placement(name).index("tp")
        np.testing.assert_array_equal(np.concatenate(parts, axis), whole)


def test_a_size_that_does_not_divide_is_named():
    with pytest.raises(ConfigError, match=r"dimension 0 of 6 does not divide by model_parallel=4"):
        shard_slices("model.embed_tokens.weight", (6, 2), tp=4, shard=0)


def test_rank_and_place_are_each_others_inverse():
    layout = Layout(dp=2, tp=3, pp=4)
    places = [layout.coordinates(rank) for rank in range(layout.num_ranks)]
    assert [layout.rank(stage=s, replica=r, shard=t) for s, r, t in places] == list(range(24))
    assert layout.coordinates(1) == (0, 0, 1), "neighbouring ranks hold shards of one weight"


def test_a_layout_without_ranks_is_refused():
    with pytest.raises(ConfigError, match="tp=0"):
        Layout(tp=0)
