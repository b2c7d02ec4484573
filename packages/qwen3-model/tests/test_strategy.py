import random
from contextlib import suppress

import pytest

from qwen3_model.checkpoints.strategy import TensorLayout, encode_strategy, read_strategy, write_strategy
from qwen3_model.errors import FormatError

LAYOUTS = {
    "model.embed_tokens.weight": TensorLayout(dev_matrix=(2, 4), tensor_map=(0, -1)),
    "model.layers.0.self_attn.o_proj.weight": TensorLayout(
        dev_matrix=(2, 4), tensor_map=(-1, 0), opt_shard_step=4, opt_shard_size=-1
    ),
    "model.norm.weight": TensorLayout(
        dev_matrix=(300,), tensor_map=(-1,), opt_shard_step=1, opt_shard_size=2
    ),
}


def test_layouts_come_back_from_the_file(tmp_path):
    write_strategy(tmp_path / "s.ckpt", 3, LAYOUTS)
    assert read_strategy(tmp_path / "s.ckpt") == (3, LAYOUTS)


def test_bytes_are_those_of_a_hand_encoded_message():
    layout = TensorLayout(dev_matrix=(1, 2), tensor_map=(0, -1))
    expected = bytes.fromhex(
        "0801"  # current_stage 1
        "120d" "0a0177" "1208" "0801" "1204" "08020801"  # item w: stage 1, cut in (2, 1)
        "1a24" "0a0177" "121f" "0a04" "08010802" "120d" "0800" "08ffffffffffffffffff01"  # grid, map (0, -1)
        "1a002200"  # empty param_split_shape and indices_offset
        "2800" "3000" "3800"
    )  # fmt: skip
    assert encode_strategy(1, {"w": (1, layout)}) == expected


def test_pieces_of_a_tensor_that_nothing_else_cuts_are_written_as_a_cut_along_their_axis(tmp_path):
    stated = TensorLayout(dev_matrix=(3, 2, 4), tensor_map=(-1, -1), opt_shard_step=4, opt_shard_size=2)
    write_strategy(tmp_path / "s.ckpt", 0, {"w": stated})
    written = read_strategy(tmp_path / "s.ckpt")[1]["w"]
    assert written == TensorLayout(dev_matrix=(3, 2, 4), tensor_map=(1, -1))
    for rank in range(24):
        (row_part, _), piece = written.slice_of(rank)
        assert (row_part, piece) == (stated.slice_of(rank)[1], 0)


def test_mindspores_own_classes_read_the_file():
    strategy_pb2 = pytest.importorskip("mindspore.train.node_strategy_pb2")
    message = strategy_pb2.ParallelStrategyMap()
    message.ParseFromString(encode_strategy(3, {name: (3, layout) for name, layout in LAYOUTS.items()}))
    assert message.current_stage == 3
    assert [item.parallel_strategys.stage for item in message.parallel_strategy_item] == [3, 3, 3]
    for item, (name, layout) in zip(message.parallel_layout_item, LAYOUTS.items(), strict=True):
        assert item.param_name == name
        assert tuple(item.parallel_layouts.dev_matrix[0].dim) == layout.dev_matrix
        assert tuple(item.parallel_layouts.tensor_map[0].dim) == layout.tensor_map
        assert item.parallel_layouts.opt_weight_shard_size == layout.opt_shard_size


def test_files_of_mindspores_own_classes_are_read(tmp_path):
    strategy_pb2 = pytest.importorskip("mindspore.train.node_strategy_pb2")
    message = strategy_pb2.ParallelStrategyMap(current_stage=2)
    for name, layout in LAYOUTS.items():
        strategy = message.parallel_strategy_item.add(node_name=name).parallel_strategys
        strategy.stage = 2
        layouts = message.parallel_layout_item.add(param_name=name).parallel_layouts
        layouts.dev_matrix.add().dim.extend(layout.dev_matrix)
        layouts.tensor_map.add().dim.extend(layout.tensor_map)
        layouts.param_split_shape.add().dim.append(-5)
        layouts.indices_offset.add().dim.append(7)
        layouts.field = 9
        layouts.opt_weight_shard_step, layouts.opt_weight_shard_size = (
            layout.opt_shard_step,
            layout.opt_shard_size,
        )
    (tmp_path / "s.ckpt").write_bytes(message.SerializeToString())
    assert read_strategy(tmp_path / "s.ckpt") == (2, LAYOUTS)


def test_places_follow_the_grid_with_the_last_axis_fastest():
    layout = TensorLayout(dev_matrix=(2, 4), tensor_map=(0, -1), opt_shard_step=4, opt_shard_size=-1)
    assert layout.splits() == (4, 1)
    assert layout.optimizer_pieces() == 2
    assert [layout.slice_of(rank) for rank in (0, 3, 4, 6)] == [
        ((0, 0), 0),
        ((3, 0), 0),
        ((0, 0), 1),
        ((2, 0), 1),
    ]


def test_a_damaged_file_is_one_sentence_and_never_another_error(tmp_path):
    path = tmp_path / "s.ckpt"
    whole = encode_strategy(0, {name: (0, layout) for name, layout in LAYOUTS.items()})
    rng = random.Random(0)
    refused = 0
    for _ in range(1000):
        damaged = bytearray(whole[: rng.randrange(1, len(whole) + 1)])
        for _ in range(rng.randrange(4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        with suppress(FormatError):
            read_strategy(path)
            continue
        refused += 1
    assert refused > 500


@pytest.mark.parametrize("body", [b"", b"\x0a\x01", b"\x80", b"not a protobuf at all"])
def test_what_is_no_strategy_file_is_refused(tmp_path, body):
    (tmp_path / "s.ckpt").write_bytes(body)
    with pytest.raises(FormatError, match="damaged or no strategy file"):
        read_strategy(tmp_path / "s.ckpt")


@pytest.mark.parametrize(
    "layout",
    [
        TensorLayout(dev_matrix=(1 << 20, 1 << 20), tensor_map=(0, -1)),
        TensorLayout(dev_matrix=(2,), tensor_map=(-1, -1), opt_shard_step=1, opt_shard_size=1 << 40),
    ],
)
def test_a_grid_of_more_devices_than_exist_is_refused_before_anything_walks_over_it(tmp_path, layout):
    (tmp_path / "s.ckpt").write_bytes(encode_strategy(0, {"model.embed_tokens.weight": (0, layout)}))
    with pytest.raises(FormatError, match=r"has the grid|optimizer pieces"):
        read_strategy(tmp_path / "s.ckpt")
