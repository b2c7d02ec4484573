"""MindSpore's strategy files in JSON, which it writes where the name ends in .json.

{"parallel_strategy_item": {node: {"stage": 0, ...}},
 "parallel_layout_item": {tensor: {"dev_matrix": [..], "tensor_map": [..], "opt_weight_shard_step": 0,
                                   "opt_weight_shard_size": 0, "field": 0}}}
"""

import json
from pathlib import Path

from qwen3_model.checkpoints.strategy import TensorLayout, check_layout
from qwen3_model.command.narrow import as_int, as_ints, as_section, field
from qwen3_model.command.small_files import INDEX_BYTES, read_small_text
from qwen3_model.errors import FormatError


def read_json_strategy(path: Path) -> tuple[int, dict[str, TensorLayout]]:
    """Read a strategy file in JSON; returns and raises what `read_strategy` does."""
    try:
        stated = as_section(json.loads(read_small_text(path, INDEX_BYTES)))
        layouts = field(stated, "parallel_layout_item", _layouts)
        for name, layout in layouts.items():
            check_layout(name, layout)
        nodes = field({"parallel_strategy_item": {}, **stated}, "parallel_strategy_item", as_section)
        if nodes:
            return field(nodes, next(iter(nodes)), _stage), layouts
        return field({"current_stage": 0, **stated}, "current_stage", as_int), layouts
    except (ValueError, RecursionError, FormatError) as error:
        raise FormatError(f"{path} is damaged or no strategy file of MindSpore: {error}") from None


def _stage(node: object) -> int:
    return field(as_section(node), "stage", as_int)


def _layouts(stated: object) -> dict[str, TensorLayout]:
    items = as_section(stated)
    return {name: field(items, name, _layout) for name in items}


def _layout(stated: object) -> TensorLayout:
    item = {"opt_weight_shard_step": 0, "opt_weight_shard_size": 0, **as_section(stated)}
    return TensorLayout(
        dev_matrix=tuple(field(item, "dev_matrix", as_ints)),
        tensor_map=tuple(field(item, "tensor_map", as_ints)),
        opt_shard_step=field(item, "opt_weight_shard_step", as_int),
        opt_shard_size=field(item, "opt_weight_shard_size", as_int),
    )
