"""MindSpore's strategy files: which slice of each weight a rank holds. Needs no protobuf and no MindSpore.

Format: proto2 package `mindspore.straspb`, message ParallelStrategyMap: 1 current_stage,
2 parallel_strategy_item {1 node_name, 2 {1 stage, 2 {1 dim}}},
3 parallel_layout_item {1 param_name, 2 {1 dev_matrix {1 dim}, 2 tensor_map {1 dim}, 3 param_split_shape,
4 indices_offset, 5 field, 6 opt_weight_shard_step, 7 opt_weight_shard_size}}.
Wire format: protobuf's encoding guide.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.checkpoints.protobuf import (
    as_bytes,
    as_number,
    fields,
    message,
    number,
    read_varint,
    signed,
    text,
)
from qwen3_model.command.files import write_atomically
from qwen3_model.command.small_files import INDEX_BYTES, read_small
from qwen3_model.errors import FormatError


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorLayout:
    """How one weight is cut over the devices of its stage."""

    dev_matrix: tuple[int, ...]
    """Devices of the stage as a grid; the last axis runs fastest over local ranks."""
    tensor_map: tuple[int, ...]
    """Axis of the device matrix that cuts each dimension, counted from the right; -1 where it is whole."""
    opt_shard_step: int = 0
    """Distance in local ranks between neighbours that share out a slice again."""
    opt_shard_size: int = 0
    """Pieces into which dimension 0 of a slice is cut again: 0 none, -1 as many as there are replicas."""

    def num_devices(self) -> int:
        """Return the devices of the stage."""
        return math.prod(self.dev_matrix)

    def splits(self) -> tuple[int, ...]:
        """Return into how many parts the grid cuts each dimension, optimizer pieces not counted."""
        from_right = self.dev_matrix[::-1]
        return tuple(1 if axis < 0 else from_right[axis] for axis in self.tensor_map)

    def optimizer_pieces(self) -> int:
        """Return into how many pieces dimension 0 of a slice is cut again, 1 for none."""
        if self.opt_shard_size == -1:
            return self.num_devices() // math.prod(self.splits())
        return max(self.opt_shard_size, 1)

    def slice_of(self, local_rank: int) -> tuple[tuple[int, ...], int]:
        """Return which part of each dimension a local rank holds, and which optimizer piece of that slice."""
        coordinates, rest = [], local_rank
        for size in self.dev_matrix[::-1]:
            rest, coordinate = divmod(rest, size)
            coordinates.append(coordinate)
        parts = tuple(0 if axis < 0 else coordinates[axis] for axis in self.tensor_map)
        return parts, local_rank // max(self.opt_shard_step, 1) % self.optimizer_pieces()


MAX_DEVICES = 1 << 20
"""Most devices of a stage; no cluster has more, and readers walk over all of them."""


def write_strategy(path: Path, stage: int, layouts: Mapping[str, TensorLayout]) -> None:
    """Write the strategy file of a rank of pipeline stage `stage`, whole or not at all."""
    body = encode_strategy(stage, {name: (stage, layout) for name, layout in layouts.items()})
    write_atomically(path, lambda temporary: temporary.write_bytes(body))


def encode_strategy(current_stage: int, items: Mapping[str, tuple[int, TensorLayout]]) -> bytes:
    """Return the bytes of a strategy file; `items` maps a name to its stage and layout.

    A file that merges the stages of a pipeline names its weights `<stage>-<name>`. Optimizer pieces of a
    tensor that nothing else cuts are written as a cut along their axis.
    """
    # MindSpore takes a file's stage from its first strategy item, so each weight gets one.
    items = {name: (stage, _plain(layout)) for name, (stage, layout) in items.items()}
    strategies = [_strategy_item(name, stage, layout) for name, (stage, layout) in items.items()]
    layouts = [_layout_item(name, layout) for name, (_, layout) in items.items()]
    return number(1, current_stage) + b"".join(strategies) + b"".join(layouts)


def merge_strategies(bodies: Mapping[int, bytes]) -> bytes:
    """Return one strategy file out of a rank's file for each stage, as `merge_pipeline_strategys` does.

    Items are copied as they are; the name of each layout gets its stage as prefix.

    Raises:
        ValueError: A body is damaged.
    """
    items, layouts = [], []
    for stage, body in sorted(bodies.items()):
        for field, value in fields(body):
            if field == 2:
                items.append(message(2, as_bytes(value)))
            elif field == 3:
                layout = dict(fields(as_bytes(value)))
                named = text(1, f"{stage}-{as_bytes(layout[1]).decode()}")
                layouts.append(message(3, named + message(2, as_bytes(layout[2]))))
    return number(1, 1) + b"".join(items) + b"".join(layouts)


def read_strategy(path: Path) -> tuple[int, dict[str, TensorLayout]]:
    """Read a rank's strategy file.

    Returns:
        The pipeline stage and the layout of each tensor. In a file that merges the stages of a pipeline the
        names are `<stage>-<name>` and the stage is that of its first item.

    Raises:
        FormatError: The file is damaged, or is no strategy file, or uses more than one grid for a tensor.
    """
    body = read_small(path, INDEX_BYTES)
    try:
        return _decode(body)
    except (ValueError, IndexError, OverflowError) as error:
        raise FormatError(f"{path} is damaged or no strategy file of MindSpore: {error}") from None


def _plain(layout: TensorLayout) -> TensorLayout:
    """Return the same cut without optimizer pieces, where one axis of the grid makes them and no other cuts.

    MindSpore ignores the step of such pieces and takes neighbouring ranks, so its merge would mix them up.
    """
    grid = layout.dev_matrix
    if not layout.opt_shard_size or not layout.tensor_map or max(layout.tensor_map) >= 0:
        return layout
    for axis, size in enumerate(grid[::-1]):
        step = math.prod(grid[len(grid) - axis :])
        if (step, size) == (layout.opt_shard_step, layout.optimizer_pieces()):
            return TensorLayout(dev_matrix=grid, tensor_map=(axis, *layout.tensor_map[1:]))
    return layout


def _strategy_item(name: str, stage: int, layout: TensorLayout) -> bytes:
    split = message(2, b"".join(number(1, parts) for parts in layout.splits()))
    return message(2, text(1, name) + message(2, number(1, stage) + split))


def _layout_item(name: str, layout: TensorLayout) -> bytes:
    grid = message(1, b"".join(number(1, size) for size in layout.dev_matrix))
    axes = message(2, b"".join(number(1, axis) for axis in layout.tensor_map))
    options = number(5, 0) + number(6, layout.opt_shard_step) + number(7, layout.opt_shard_size)
    # MindSpore reads the first param_split_shape of every layout, and uses neither it nor indices_offset.
    unused = message(3, b"") + message(4, b"")
    return message(3, text(1, name) + message(2, grid + axes + unused + options))


def _decode(body: bytes) -> tuple[int, dict[str, TensorLayout]]:
    stages: list[int] = []
    layouts: dict[str, TensorLayout] = {}
    current_stage = None
    for field, value in fields(body):
        if field == 1:
            current_stage = as_number(value)
        elif field == 2:
            stages.append(_decode_stage(as_bytes(value)))
        elif field == 3:
            name, layout = _decode_layout_item(as_bytes(value))
            if name in layouts:
                raise ValueError(f"{name} occurs twice")
            layouts[name] = layout
    if current_stage is None:
        raise ValueError("it states no stage")
    return (stages[0] if stages else current_stage), layouts


def _decode_stage(body: bytes) -> int:
    strategies = dict(fields(body)).get(2, b"")
    return as_number(dict(fields(as_bytes(strategies))).get(1, 0))


def _decode_layout_item(body: bytes) -> tuple[str, TensorLayout]:
    found = dict(fields(body))
    name = as_bytes(found.get(1, b"")).decode()
    grids: list[tuple[int, ...]] = []
    maps: list[tuple[int, ...]] = []
    options = {6: 0, 7: 0}
    for field, value in fields(as_bytes(found.get(2, b""))):
        if field == 1:
            grids.append(_dims(as_bytes(value)))
        elif field == 2:
            maps.append(_dims(as_bytes(value)))
        elif field in options:
            options[field] = signed(as_number(value))
    if len(grids) != 1 or len(maps) != 1:
        raise ValueError(
            f"{name!r} has {len(grids)} grids and {len(maps)} tensor maps, one of each is supported"
        )
    layout = TensorLayout(
        dev_matrix=grids[0], tensor_map=maps[0], opt_shard_step=options[6], opt_shard_size=options[7]
    )
    check_layout(name, layout)
    return name, layout


def check_layout(name: str, layout: TensorLayout) -> None:
    """Raise ValueError when a layout describes no cut."""
    if not layout.dev_matrix or min(layout.dev_matrix) < 1 or layout.num_devices() > MAX_DEVICES:
        raise ValueError(f"{name!r} has the grid {layout.dev_matrix}")
    if any(not -1 <= axis < len(layout.dev_matrix) for axis in layout.tensor_map):
        raise ValueError(f"{name!r} has the tensor map {layout.tensor_map} on the grid {layout.dev_matrix}")
    cuts = [axis for axis in layout.tensor_map if axis >= 0]
    if len(set(cuts)) != len(cuts):
        raise ValueError(f"{name!r} has the tensor map {layout.tensor_map}, which uses an axis twice")
    if (
        layout.opt_shard_size > layout.num_devices()
        or layout.opt_shard_size < -1
        or layout.opt_shard_step < -1
    ):
        raise ValueError(
            f"{name!r} has optimizer pieces of {layout.opt_shard_size} by {layout.opt_shard_step}"
        )


def _dims(body: bytes) -> tuple[int, ...]:
    dims: list[int] = []
    for field, value in fields(body):
        if field != 1:
            continue
        if isinstance(value, int):
            dims.append(signed(value))
        else:  # packed
            position = 0
            while position < len(value):
                number, position = read_varint(value, position)
                dims.append(signed(number))
    return tuple(dims)
