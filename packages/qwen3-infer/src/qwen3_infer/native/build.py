"""Make the library of the C++ kernels, and ask what this processor can do."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

from qwen3_infer.device import Device
from qwen3_model.device import native_build
from qwen3_model.device.native_build import COMPILERS, BuildError, compiled_library

SOURCE_DIR = Path(__file__).parent
FLAGS = (*native_build.FLAGS, "-ffp-contract=fast")
TIMEOUT_S = native_build.TIMEOUT_S


def find_library(device: Device, note: Callable[[str], None]) -> Path | None:
    """Return the kernels' library for `device`, None where MindSpore's own operators are to be used.

    `note` gets a sentence where native kernels cannot be had and nobody has asked for them.

    Raises:
        BuildError: They are asked for and cannot be compiled.
    """
    if device.target != "CPU" or device.kernels == "portable":
        return None
    try:
        library = native_library(device.cache_dir, device.num_threads)
        if rounds_inputs(device):
            require_bfloat16(library)
    except BuildError as error:
        if device.kernels != "auto":
            raise
        note(f"{error}; going on with MindSpore's own operators, several times slower")
        return None
    return library


def rounds_inputs(device: Device) -> bool:
    """Return whether native kernels round the inputs of products to bfloat16."""
    return device.kernels == "native-bf16"


def native_library(cache_dir: Path, num_threads: int, compilers: Sequence[str] = COMPILERS) -> Path:
    """Return the shared library of the kernels, compiled now unless `cache_dir` has it, set to `num_threads`.

    Raises:
        BuildError: See `compiled_library`.
    """
    sources = [SOURCE_DIR / "kernels.cc", *sorted(SOURCE_DIR.glob("*.h"))]
    library = compiled_library(sources, cache_dir, flags=FLAGS, compilers=compilers, timeout_s=TIMEOUT_S)
    ctypes.CDLL(str(library)).qwen3_use_threads(num_threads)
    return library


def require_bfloat16(library: Path) -> None:
    """Raise when this processor cannot multiply bfloat16.

    Raises:
        BuildError: It cannot; the message says so.
    """
    if not ctypes.CDLL(str(library)).qwen3_has_bfloat16():
        raise BuildError(
            "--kernels native-bf16 needs a processor with AVX512-BF16, which this one has not; use native"
        )
