"""Strategy files in both of MindSpore's forms, and where people keep them."""

import json

import pytest

from qwen3_model.checkpoints.strategies import find_strategy, merged_strategy, read_stages
from qwen3_model.checkpoints.strategy import TensorLayout, merge_strategies, write_strategy
from qwen3_model.errors import ConfigError, FormatError

NAME = "model.layers.0.mlp.up_proj.weight"
CUT = TensorLayout(dev_matrix=(2, 2), tensor_map=(0, -1), opt_shard_step=2, opt_shard_size=2)


def write_json(path, stage=0, layout=CUT, name=NAME):
    item = {
        "dev_matrix": list(layout.dev_matrix), "tensor_map": list(layout.tensor_map), "param_split_shape": [],
        "indices_offset": [], "field": 0, "opt_weight_shard_step": layout.opt_shard_step,
        "opt_weight_shard_size": layout.opt_shard_size,
    }  # fmt: skip
    told = {
        "current_stage": stage,
        "parallel_strategy_item": {"MatMul-op0": {"stage": stage, "parallel_strategy": [[1, 1]]}},
        "parallel_layout_item": {name: item},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told), encoding="utf-8")


def test_json_says_what_protobuf_says(tmp_path):
    for stage in (0, 1):
        write_strategy(tmp_path / "pb" / f"ckpt_strategy_rank_{stage}.ckpt", stage, {NAME: CUT})
        write_json(tmp_path / "json" / f"ckpt_strategy_rank_{stage}.json", stage)
    assert (
        read_stages(tmp_path / "json")
        == read_stages(tmp_path / "pb")
        == ({0: {NAME: CUT}, 1: {NAME: CUT}}, [])
    )
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "m.ckpt").write_bytes(merged_strategy(tmp_path / "json"))
    assert read_stages(tmp_path / "merged")[0] == read_stages(tmp_path / "pb")[0]
    write_json(tmp_path / "joint" / "m.json", 0, name=f"0-{NAME}")
    assert read_stages(tmp_path / "joint")[0] == {0: {NAME: CUT}}


def test_mindspore_reads_the_same_layout_from_json(tmp_path):
    """Its own reader is the reference for the spelling."""
    serialization = pytest.importorskip("mindspore.parallel._parallel_serialization")
    write_json(tmp_path / "a.json")
    layout = serialization._build_searched_strategy(str(tmp_path / "a.json"))[NAME]
    assert tuple(layout.dev_matrix[0].dim) == CUT.dev_matrix
    assert tuple(layout.tensor_map[0].dim) == CUT.tensor_map
    assert (layout.opt_weight_shard_step, layout.opt_weight_shard_size) == (2, 2)


DAMAGED = [
    "", "{", "[]", "{}", '{"parallel_layout_item": {}}', '{"parallel_layout_item": {"a": 1}}',
    '{"a":' * 100_000,
    '{"parallel_layout_item": {"a": {"dev_matrix": [2], "tensor_map": [true]}}}',
    '{"parallel_layout_item": [1]}', '{"parallel_layout_item": {"a": {"dev_matrix": "2"}}}',
    '{"parallel_layout_item": {}, "parallel_strategy_item": {"n": {"stage": Infinity}}}',
    '{"parallel_layout_item": {}, "parallel_strategy_item": {"n": 1}}',
    '{"parallel_layout_item": {}, "current_stage": true}',
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_json_is_one_sentence(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=r"a\.json (is damaged or no strategy file|describes no tensor)"):
        read_stages(tmp_path / "a.json")


@pytest.mark.parametrize("form", ["json", "protobuf"])
def test_an_axis_that_cuts_two_dimensions_is_refused(tmp_path, form):
    """The replicas of such a tensor are fewer than one, by which nothing can be divided."""
    layout = TensorLayout(dev_matrix=(2,), tensor_map=(0, 0), opt_shard_size=-1)
    if form == "json":
        write_json(tmp_path / "a.json", layout=layout)
        source = tmp_path / "a.json"
    else:
        source = tmp_path / "a.ckpt"
        spoiled = TensorLayout(dev_matrix=(2, 1), tensor_map=(0, 1), opt_shard_size=-1)
        write_strategy(source, 0, {NAME: spoiled})
        source.write_bytes(source.read_bytes().replace(b"\x08\x00\x08\x01", b"\x08\x00\x08\x00"))
    with pytest.raises(FormatError, match="uses an axis twice"):
        read_stages(source)


@pytest.mark.parametrize(
    "place",
    ["strategy/ckpt_strategy_rank_0.ckpt", "strategy/merged_ckpt_strategy.ckpt", "merged_ckpt_strategy.ckpt",
     "checkpoint/merged_ckpt_strategy.ckpt", "merge_strategy/merge_strategy.ckpt"],
)  # fmt: skip
def test_a_strategy_is_found_where_its_users_keep_it(tmp_path, place):
    (tmp_path / "checkpoint" / "rank_0").mkdir(parents=True)
    assert find_strategy(tmp_path / "checkpoint") is None
    write_strategy(tmp_path / "one.ckpt", 0, {NAME: CUT})
    (tmp_path / place).parent.mkdir(exist_ok=True)
    body = (tmp_path / "one.ckpt").read_bytes()
    (tmp_path / place).write_bytes(body if "rank" in place else merge_strategies({0: body}))
    found = find_strategy(tmp_path / "checkpoint")
    assert found is not None
    assert read_stages(found)[0] == {0: {NAME: CUT}}


def test_other_json_files_of_a_folder_are_no_strategies(tmp_path):
    for name, text in {"config.json": "{}", "jobs.json": "[]", "broken.json": "{"}.items():
        (tmp_path / "strategy" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "strategy" / name).write_text(text, encoding="utf-8")
    assert find_strategy(tmp_path / "checkpoint") is None
    with pytest.raises(ConfigError, match="holds no strategy file"):
        read_stages(tmp_path / "strategy")
    write_json(tmp_path / "strategy/ckpt_strategy_rank_0.json")
    assert find_strategy(tmp_path / "checkpoint") == tmp_path / "strategy"
    assert read_stages(tmp_path / "strategy") == ({0: {NAME: CUT}}, [])
