"""Whether a Hugging Face folder holds exactly its config's weights, and only finite numbers in them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.hf_folder import open_hf_tensors, tied_head_problems
from qwen3_model.progress import Progress
from qwen3_model.safetensors_file import FLOAT_DTYPES, SafetensorsFile

# Bits of the exponent; all ones mean NaN or infinity.
EXPONENT = {"BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000)}
CHUNK = 1 << 22


def find_faults(directory: Path, *, quiet: bool = True) -> Iterator[str]:
    """Yield a sentence for everything that is wrong with `directory`; nothing when it is sound.

    Reads each tensor once, in pieces of a few megabytes.
    """
    try:
        config = Qwen3Config.from_dir(directory)
        tensors = open_hf_tensors(directory)
    except (ConfigError, FormatError) as error:
        yield str(error)
        return
    yield from tied_head_problems(config, tensors)
    yield from _shape_faults(config, tensors)
    total = sum(file.tensors[name].size_bytes for name, file in tensors.items())
    with Progress("verify", total, "B", quiet=quiet) as progress:
        for name, file in tensors.items():
            if file.tensors[name].dtype in FLOAT_DTYPES and (count := _count_not_finite(file, name)):
                yield f"{name} in {file.path.name} has {count} values that are NaN or infinite"
            file.release(name)
            progress.advance(file.tensors[name].size_bytes)


def _shape_faults(config: Qwen3Config, tensors: dict[str, SafetensorsFile]) -> Iterator[str]:
    shapes = config.weight_shapes()
    for name, shape in shapes.items():
        if name not in tensors:
            yield f"{name} of shape {shape} is missing"
            continue
        info = tensors[name].tensors[name]
        place = f"{name} in {tensors[name].path.name}"
        if info.shape != shape:
            yield f"{place} has shape {info.shape}, config.json says {shape}"
        if info.dtype not in FLOAT_DTYPES:
            yield f"{place} has dtype {info.dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
    for name in sorted(tensors.keys() - shapes.keys()):
        yield f"{name} in {tensors[name].path.name} is no weight of this model"


def _count_not_finite(file: SafetensorsFile, name: str) -> int:
    values, dtype = file.raw(name).reshape(-1), file.tensors[name].dtype
    return sum(count_not_finite(values[i : i + CHUNK], dtype) for i in range(0, values.size, CHUNK))


def count_not_finite(raw: np.ndarray, dtype: str) -> int:
    """Return how many elements of raw F32, F16 or BF16 data are NaN or infinite."""
    unsigned, mask = EXPONENT[dtype]
    return int(np.count_nonzero((raw.view(unsigned) & unsigned(mask)) == mask))
