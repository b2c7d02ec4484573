"""Let MindSpore parse and differentiate equal decoder layers once instead of one by one.

That halves the compilation of a deep model. MindSpore compiles cells with equal keys once, so the key must
state everything that a layer's graph depends on: a layer that differs, such as by an adapter, gets a key of
its own.
"""

import hashlib
from collections.abc import Iterator

from mindspore import Parameter, nn

from qwen3_model.network.model import Qwen3ForCausalLM

PREFIX = "lazy_inline_"
"""Beginning by which MindSpore knows such a key."""
IGNORED_ATTRIBUTES = frozenset(
    {"_cells", "_params", "_param_prefix", "_cell_init_args", "_phase", "_id", "_create_time"}
)
"""Attributes of every cell that only name it, or whose contents `_describe_cells` describes by themselves."""


def share_layer_graphs(model: Qwen3ForCausalLM) -> None:
    """Give equal layers of `model` equal keys.

    Call it after adapters are added and recomputation is set, for both change layers, and before compilation.
    """
    for layer in model.model.layers:
        text = f"{id(model)} " + " ".join(_describe_cells(layer))
        layer.cell_init_args = PREFIX + hashlib.sha256(text.encode()).hexdigest()
        # The shared graph is inlined before it reaches the backend; on a CPU the backend knows no calls.
        layer.no_inline = False


def _describe_cells(layer: nn.Cell) -> Iterator[str]:
    """Yield type, attributes and weights of each cell of a layer, in the same order for equal layers."""
    for path, cell in layer.cells_and_names():
        yield f"{path}:{type(cell).__qualname__}"
        for name, value in sorted(vars(cell).items()):
            if name not in IGNORED_ATTRIBUTES and not isinstance(value, nn.Cell | Parameter):
                yield f"{name}={_describe_value(value)}"
        for name, weight in cell.parameters_and_names(expand=False):
            yield f"{name}={weight.shape} {weight.dtype} {weight.requires_grad}"


def _describe_value(value: object) -> str:
    """Return a plain value as text; any other object by its id(), so that only the same object is equal."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, dict | tuple | list | set | frozenset) and not value:
        return "empty"
    return f"{type(value).__qualname__} {id(value)}"
