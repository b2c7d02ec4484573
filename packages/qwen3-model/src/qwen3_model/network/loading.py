"""Filling a model's weights, from a Hugging Face folder, from arrays or from a seed.

On a CPU the values are read some rows at a time and converted into the parameter's own memory, so there is
never a second copy of a tensor, let alone of the model. A graph that was compiled earlier sees them, too.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from qwen3_model.checkpoints.fresh_weights import fresh_weight
from qwen3_model.checkpoints.hf_folder import open_hf_folder
from qwen3_model.checkpoints.weight_values import Values, make_room, read_bits, read_float32
from qwen3_model.command.progress import Progress
from qwen3_model.errors import WeightError
from qwen3_model.network.model import Qwen3ForCausalLM
from qwen3_model.ranks.layout import shard_slices

STORED_AS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
SHOWN_FAULTS = 5
"""Faults of weights that one sentence names."""
Put = Callable[[Parameter, str, Values], None]
"""Fills a parameter from values of a safetensors dtype."""


def load_hf(model: Qwen3ForCausalLM, directory: Path, *, quiet: bool = True, put: Put | None = None) -> None:
    """Fill every weight of `model` from the safetensors files of `directory`; of a split one a slice.

    Args:
        model: What to fill.
        directory: A Hugging Face folder.
        quiet: Show no progress.
        put: Called for each weight in the model's order; `fill` when left out.

    Raises:
        WeightError: A weight is missing, left over, misshapen or of a dtype that is not a float.
        ConfigError, FormatError: The folder is not a model's.
    """
    folder = open_hf_folder(directory)
    weights = {name: folder.tensors.part(name) for name in folder.tensors.names()}
    fill_weights(model, own_part(model, weights), str(directory), quiet=quiet, put=put)


def init_model(model: Qwen3ForCausalLM, seed: int) -> None:
    """Fill every weight of `model` with fresh random values, the same under any layout."""
    for name, parameter in model.parameters_and_names():
        fill(parameter, "F32", fresh_weight(model.config, name, seed, own_slices(model, name)))


def own_slices(model: Qwen3ForCausalLM, name: str) -> tuple[slice, ...]:
    """Return which part of the whole weight `name` this model's shard holds."""
    shape = model.config.weight_shapes()[name]
    return shard_slices(name, shape, tp=model.tp.size, shard=model.tp.index)


def own_part(
    model: Qwen3ForCausalLM, weights: Mapping[str, tuple[str, Values]]
) -> dict[str, tuple[str, Values]]:
    """Return what a pipeline stage and a shard hold of whole weights: views, nothing is read.

    Names and shapes that are no weight of the model are passed on as they are, for `fill_weights` to refuse.
    """
    shapes, own = model.config.weight_shapes(), dict(model.parameters_and_names())
    part: dict[str, tuple[str, Values]] = {}
    for name, (dtype, array) in weights.items():
        if shapes.get(name) != tuple(array.shape):
            part[name] = dtype, array
        elif name in own:
            part[name] = dtype, array[own_slices(model, name)]
    return part


def fill_weights(
    model: nn.Cell,
    weights: Mapping[str, tuple[str, Values]],
    source: str,
    *,
    quiet: bool = True,
    put: Put | None = None,
) -> None:
    """Fill every weight of `model` from (safetensors dtype, values), BF16 as its bits in uint16.

    `put` is that of `load_hf`.

    Raises:
        FormatError: A file has become shorter, or cannot be read.
        WeightError: The two sets of names differ, or a shape or dtype does not fit; all such faults at once.
    """
    own = dict(model.parameters_and_names())
    faults = [f"missing {name}" for name in sorted(own.keys() - weights.keys())]
    faults += [f"unexpected {name}" for name in sorted(weights.keys() - own.keys())]
    for name in sorted(own.keys() & weights.keys()):
        dtype, array = weights[name]
        if tuple(own[name].shape) != tuple(array.shape):
            faults.append(f"{name} has shape {tuple(array.shape)}, the model wants {tuple(own[name].shape)}")
        elif dtype not in STORED_AS:
            faults.append(f"{name} is {dtype}, only BF16, F16 and F32 can be loaded")
    if faults:
        more = f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        shown = "; ".join(faults[:SHOWN_FAULTS])
        raise WeightError(f"the weights of {source} do not fit the model: {shown}{more}")
    total_bytes = sum(array.nbytes for _, array in weights.values())
    with Progress("weights", total_bytes, "B", quiet=quiet) as progress:
        for name, parameter in own.items():
            dtype, array = weights[name]
            (put or fill)(parameter, dtype, array)
            progress.advance(array.nbytes)


def fill(parameter: Parameter, dtype: str, values: Values) -> None:
    """Put `values`, stored as safetensors' `dtype`, into `parameter`, in place where the device allows it.

    Raises:
        FormatError: They lie in a file that has become shorter, or cannot be read.
    """
    if parameter.dtype == ms.float32:
        target = parameter.asnumpy()
        if not target.flags.writeable:
            target.flags.writeable = True
        read_float32(dtype, values, target)
        if not np.shares_memory(target, parameter.asnumpy()):
            parameter.set_data(Tensor(target))
    elif parameter.dtype == ms.bfloat16 and dtype == "BF16":
        bits = make_room(values.shape, np.uint16)
        read_bits(values, bits)
        parameter.set_data(_bfloat16(bits))
    else:
        target = np.empty(values.shape, np.float32)
        read_float32(dtype, values, target)
        parameter.set_data(Tensor(target).astype(parameter.dtype))


def _bfloat16(values: np.ndarray) -> Tensor:
    """Return a tensor of the same bits."""
    return Tensor.from_numpy(values.view(np.int16)).view(ms.bfloat16)
