"""MindSpore's strategy files in JSON, which it writes where the name ends in .json.

{"parallel_strategy_item": {node: {"stage": 0, ...}},
 "parallel_layout_item": {tensor: {"dev_matrix": [..], "tensor_map": [..], "opt_weight_shard_step": 0,
                                   "opt_weight_shard_size": 0, "field": 0}}}
"""

import json
from collections.abc import Mapping
from pathlib import Path

from qwen3_model.checkpoints.strategy import TensorLayout, check_layout
from qwen3_model.command.narrow import as_int, as_ints, as_section, at_key
from qwen3_model.command.small_files import INDEX_BYTES, read_small_text
from qwen3_model.errors import FormatError


def read_json_strategy(path: Path) -> tuple[int, dict[str, TensorLayout]]:
    """Read a strategy file in JSON; returns and raises what `read_strategy` does."""
    try:
        contents: object = json.loads(read_small_text(path, INDEX_BYTES))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    try:
        stated = as_section(contents)
        layouts = at_key(stated, "parallel_layout_item", _layouts)
        for name, layout in layouts.items():
            check_layout(name, layout)
        nodes: Mapping[str, object] = at_key(stated, "parallel_strategy_item", as_section, {})
        if nodes:
            return at_key(nodes, next(iter(nodes)), _stage), layouts
        return at_key(stated, "current_stage", as_int, 0), layouts
    except (ValueError, FormatError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> FormatError:
    return FormatError(f"{path} is damaged or no strategy file of MindSpore: {error}")


def _stage(node: object) -> int:
    return at_key(as_section(node), "stage", as_int)


def _layouts(stated: object) -> dict[str, TensorLayout]:
    items = as_section(stated)
    return {name: at_key(items, name, _layout) for name in items}


def _layout(stated: object) -> TensorLayout:
    item = as_section(stated)
    return TensorLayout(
        dev_matrix=tuple(at_key(item, "dev_matrix", as_ints)),
        tensor_map=tuple(at_key(item, "tensor_map", as_ints)),
        opt_shard_step=at_key(item, "opt_weight_shard_step", as_int, 0),
        opt_shard_size=at_key(item, "opt_weight_shard_size", as_int, 0),
    )
