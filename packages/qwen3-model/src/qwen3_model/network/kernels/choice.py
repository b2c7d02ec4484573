"""Which kernels a device has."""

from qwen3_model.errors import ConfigError
from qwen3_model.network.kernels.ascend import AscendKernels
from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.kernels.seam import Kernels


def make_kernels(device_target: str, *, float32_residual: bool = False) -> Kernels:
    """Return the kernels of `device_target`, MindSpore's name of a device.

    With `float32_residual` layers add to float32 on Ascend, too; a CPU knows nothing else.

    Raises:
        ConfigError: The device is neither CPU nor Ascend.
    """
    if device_target == "Ascend":
        return AscendKernels(float32_residual=float32_residual)
    if device_target == "CPU":
        return PortableKernels()
    raise ConfigError(f"device_target={device_target!r} is not supported; use CPU or Ascend")
