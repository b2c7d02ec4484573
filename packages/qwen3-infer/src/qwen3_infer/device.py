"""Where and how a model runs, said without importing MindSpore."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device and what computes on it."""

    target: str
    """CPU or Ascend."""
    kernels: str
    """On a CPU: native for C++, portable for MindSpore's operators, auto for the first that works."""
    num_threads: int
    """Of the native kernels."""
    cache_dir: Path
    """Keeps the compiled kernels."""
