"""Where and how a model runs, said without importing MindSpore."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it reads YAML, which `--help` needs not
    from qwen3_model.device.ascend import AscendSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device and what computes on it."""

    target: str
    """CPU or Ascend."""
    kernels: str
    """Operators of a CPU: native for C++, native-bf16 for C++ that rounds inputs of products to bfloat16,
    portable for MindSpore's operators, auto for native if that works and else portable."""
    num_threads: int
    """Threads of the native kernels."""
    cache_dir: Path
    """Keeps the compiled kernels."""
    ascend: "AscendSettings | None" = None
    """Settings of the device, should it be Ascend."""
