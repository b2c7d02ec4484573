"""Filling a model's weights, from a Hugging Face folder, from arrays or from a seed.

On a CPU the values are read some rows at a time and converted into the parameter's own memory, so there is
never a second copy of a tensor, let alone of the model. A graph that was compiled earlier sees them, too.
"""

import contextlib
import math
import mmap
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from qwen3_model.errors import WeightError
from qwen3_model.fresh_weights import fresh_weight
from qwen3_model.hf_folder import open_hf_folder
from qwen3_model.layout import shard_slices
from qwen3_model.model import Qwen3ForCausalLM
from qwen3_model.progress import Progress
from qwen3_model.tensors import TensorPart

# Elements read and converted at a time: what a core's cache holds.
CHUNK = 1 << 18
NUM_THREADS = 2
LARGE_PAGE = 2 << 20
STORED_AS = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}

Values = np.ndarray | TensorPart
SHOWN_FAULTS = 5
"""Faults of weights that one sentence names."""


def load_hf(model: Qwen3ForCausalLM, directory: Path, *, quiet: bool = True) -> None:
    """Fill every weight of `model` from the safetensors files of `directory`; of split ones its slice.

    Raises:
        WeightError: A weight is missing, left over, misshapen or of a dtype that is not a float.
        ConfigError, FormatError: The folder is not a model's.
    """
    folder = open_hf_folder(directory)
    weights = {name: folder.tensors.part(name) for name in folder.tensors.names()}
    fill_weights(model, own_part(model, weights), str(directory), quiet=quiet)


def init_model(model: Qwen3ForCausalLM, seed: int) -> None:
    """Fill every weight of `model` with fresh random values, the same under any layout."""
    for name, parameter in model.parameters_and_names():
        values = fresh_weight(model.config, name, seed)
        fill(parameter, "F32", values[own_slices(model, name)])


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
    model: nn.Cell, weights: Mapping[str, tuple[str, Values]], source: str, *, quiet: bool = True
) -> None:
    """Fill every weight of `model` from (safetensors dtype, values), BF16 as its bits in uint16.

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
        told = "; ".join(faults[:SHOWN_FAULTS])
        raise WeightError(f"the weights of {source} do not fit the model: {told}{more}")
    total_bytes = sum(array.nbytes for _, array in weights.values())
    with Progress("weights", total_bytes, "B", quiet=quiet) as progress:
        for name, parameter in own.items():
            dtype, array = weights[name]
            fill(parameter, dtype, array)
            progress.advance(array.nbytes)


def fill(parameter: Parameter, dtype: str, values: Values) -> None:
    """Put `values`, stored as safetensors' `dtype`, into `parameter`, in place where the device allows it.

    Raises:
        FormatError: They lie in a file that has become shorter, or cannot be read.
    """
    if parameter.dtype == ms.float32:
        target = parameter.asnumpy()
        _convert(dtype, values, target)
        if not np.shares_memory(target, parameter.asnumpy()):
            parameter.set_data(Tensor(target))
    elif parameter.dtype == ms.bfloat16 and dtype == "BF16":
        bits = _on_large_pages(values.shape)
        _by_rows(_copy, values, bits)
        parameter.set_data(_bfloat16(bits))
    else:
        target = np.empty(values.shape, np.float32)
        _convert(dtype, values, target)
        parameter.set_data(Tensor(target).astype(parameter.dtype))


def _on_large_pages(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of uint16, a large one on pages of 2 MB where the system has them.

    A CPU that reads all weights for each token looks up a page for each 4 kB else, and reads a fifth slower.
    """
    size_bytes = 2 * math.prod(shape)
    if size_bytes < LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(shape, np.uint16)
    # A page more, so that it can begin with one.
    num_bytes = (-(-size_bytes // LARGE_PAGE) + 1) * LARGE_PAGE
    room = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(room, np.uint8)
    start = -whole.ctypes.data % LARGE_PAGE
    return whole[start : start + size_bytes].view(np.uint16).reshape(shape)


def _bfloat16(values: np.ndarray) -> Tensor:
    """Return a tensor of the same bits."""
    try:
        return Tensor.from_numpy(values.view(np.int16)).view(ms.bfloat16)
    except TypeError:  # MindSpore 2.7 cannot; what float32 holds of a bfloat16 is rounded back to its bits
        return Tensor((values.astype(np.uint32) << 16).view(np.float32)).astype(ms.bfloat16)


def _convert(dtype: str, values: Values, target_f32: np.ndarray) -> None:
    """Widen `values` into `target_f32`."""
    if not target_f32.flags.writeable:
        target_f32.flags.writeable = True
    _by_rows(_widen_bf16 if dtype == "BF16" else _copy, values, target_f32)


def _by_rows(convert: Callable[[np.ndarray, np.ndarray], None], values: Values, target: np.ndarray) -> None:
    """Convert some rows at a time, on a few threads; reading and numpy release the lock meanwhile."""
    if not values.shape:
        convert(np.asarray(values), target)
        return
    step = max(1, CHUNK * values.shape[0] // max(target.size, 1))
    pieces = [slice(start, min(start + step, values.shape[0])) for start in range(0, values.shape[0], step)]
    _in_threads(lambda piece: convert(np.asarray(values[piece]), target[piece]), pieces)


def _widen_bf16(bits: np.ndarray, target: np.ndarray) -> None:
    # A bfloat16 is the upper half of a float32.
    np.left_shift(bits, np.uint32(16), out=target.view(np.uint32), dtype=np.uint32)


def _copy(values: np.ndarray, target: np.ndarray) -> None:
    np.copyto(target, values)


def _in_threads(work: Callable[[slice], None], pieces: Iterable[slice]) -> None:
    pieces = list(pieces)
    if len(pieces) < NUM_THREADS:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(work, pieces))
