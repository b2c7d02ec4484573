"""Which kernels a training step takes: on a CPU those in C++, where they can be compiled."""

from collections.abc import Callable
from pathlib import Path

from qwen3_model.command.private_files import cache_home
from qwen3_model.device.native_build import BuildError, compiled_library
from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.kernels.seam import Kernels

SOURCE = Path(__file__).parent / "kernels.cc"


def training_kernels(
    device: str,
    *,
    float32_residual: bool = False,
    is_alone: bool = True,
    say: Callable[[str], None] = lambda text: None,
    cache_dir: Path | None = None,
) -> Kernels:
    """Return the kernels of a device: in C++ where one process trains on a CPU and can compile them.

    Args:
        device: CPU or Ascend.
        float32_residual: For Ascend's kernels alone.
        is_alone: Whether the run has one process; several exchange rows of weights between operators of
            MindSpore, and are there to try layouts.
        say: Hears why those in C++ are not taken.
        cache_dir: Where the library is kept; `~/.cache/qwen3-train` when left out.

    Raises:
        ConfigError: The device is neither CPU nor Ascend.
    """
    if device != "CPU" or not is_alone:
        return make_kernels(device, float32_residual=float32_residual)
    try:
        library = compiled_library([SOURCE], cache_dir or cache_home({}) / "qwen3-train")
    except (BuildError, RuntimeError) as error:  # RuntimeError: there is no home folder
        say(f"portable operations update the weights: {error}")
        return make_kernels(device)
    from qwen3_train.native.kernels import NativeTrainingKernels

    return NativeTrainingKernels(library)
