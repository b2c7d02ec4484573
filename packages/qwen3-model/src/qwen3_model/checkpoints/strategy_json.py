"""MindSpore's strategy files in JSON, which it writes where the name ends in .json.

{"parallel_strategy_item": {node: {"stage": 0, ...}},
 "parallel_layout_item": {tensor: {"dev_matrix": [..], "tensor_map": [..], "opt_weight_shard_step": 0,
                                   "opt_weight_shard_size": 0, "field": 0}}}
"""

import json
from pathlib import Path

from qwen3_model.checkpoints.strategy import TensorLayout, check_layout
from qwen3_model.command.checked import Checked
from qwen3_model.command.small_files import INDEX_BYTES, read_small_text
from qwen3_model.errors import FormatError


def read_json_strategy(path: Path) -> tuple[int, dict[str, TensorLayout]]:
    """Read a strategy file in JSON; returns and raises what `read_strategy` does."""
    try:
        stated = json.loads(read_small_text(path, INDEX_BYTES))
        layouts = {name: _layout(name, item) for name, item in stated["parallel_layout_item"].items()}
        items = list(stated.get("parallel_strategy_item", {}).values())
        return int(items[0]["stage"] if items else stated.get("current_stage", 0)), layouts
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{path} is damaged or no strategy file of MindSpore: {type(error).__name__} {error}"
        ) from None


def _layout(name: str, item: dict[str, object]) -> TensorLayout:
    layout = TensorLayout(
        dev_matrix=_numbers(item["dev_matrix"]),
        tensor_map=_numbers(item["tensor_map"]),
        opt_shard_step=_number(item.get("opt_weight_shard_step", 0)),
        opt_shard_size=_number(item.get("opt_weight_shard_size", 0)),
    )
    check_layout(name, layout)
    return layout


def _numbers(values: Checked) -> tuple[int, ...]:
    return tuple(_number(value) for value in values)


def _number(value: Checked) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value
