"""Let MindSpore parse and differentiate equal decoder layers once instead of one by one.

That halves the compilation of a deep model. MindSpore takes cells of one key for equal, so the key here says
all that a layer's graph depends on: a layer that differs in any way, such as by an adapter, has its own.
"""

import hashlib
from collections.abc import Iterator

from mindspore import Parameter, nn

from qwen3_model.network.model import Qwen3ForCausalLM

PREFIX = "lazy_inline_"
"""What marks a key for MindSpore."""
NO_FACTS = frozenset(
    {"_cells", "_params", "_param_prefix", "_cell_init_args", "_phase", "_id", "_create_time"}
)
"""Attributes of a cell that are told apart or only name it."""


def share_layer_graphs(model: Qwen3ForCausalLM) -> None:
    """Give equal layers of `model` one key; call it when adapters are in and recomputation is set."""
    for layer in model.model.layers:
        text = f"{id(model)} " + " ".join(_facts(layer))
        layer.cell_init_args = PREFIX + hashlib.sha256(text.encode()).hexdigest()
        # Its copies are put in before the backend, which on a CPU knows no calls.
        layer.no_inline = False


def _facts(layer: nn.Cell) -> Iterator[str]:
    for path, cell in layer.cells_and_names():
        yield f"{path}:{type(cell).__qualname__}"
        for name, value in sorted(vars(cell).items()):
            if name not in NO_FACTS and not isinstance(value, nn.Cell | Parameter):
                yield f"{name}={_fact(value)}"
        for name, weight in cell.parameters_and_names(expand=False):
            yield f"{name}={weight.shape} {weight.dtype} {weight.requires_grad}"


def _fact(value: object) -> str:
    """A plain value itself; of anything else which object it is."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, dict | tuple | list | set | frozenset) and not value:
        return "empty"
    return f"{type(value).__qualname__} {id(value)}"
