"""How fast a device can multiply matrices, for model FLOPs utilisation (MFU).

Of an Ascend CANN's own description says it: cube units, operations of one in a cycle, and frequency. A CPU
has no such figure, so one product in float32 is timed.
"""

import configparser
import functools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIDE, TIMES, ENOUGH_S = 1536, 5, 0.3
"""Side of the square product that is timed, repetitions at most, and seconds after which there are no more.
In a smaller product the start of threads and the copy of the result count too much."""
PLATFORM_DIRS = ("data/platform_config", "*-linux/data/platform_config", "compiler/data/platform_config")
"""Where CANN's folder has its descriptions; it moved with the versions."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest speed of one device, in the precision that products of training run in."""

    flops: float
    """Floating-point operations per second."""
    source: str
    """Where that comes from, for the log."""
    is_timed: bool = False
    """Whether a product was timed, which may have run beside other work."""


class Utilisation:
    """Model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B) of a run's devices."""

    def __init__(self, flops_per_token: int, peak_flops: float, *, is_timed: bool) -> None:
        """Take the peak of all devices together; `is_timed` as `Peak` has it."""
        self.flops_per_token, self.peak_flops, self.is_timed = flops_per_token, peak_flops, is_timed

    def at(self, tokens_per_s: float) -> float:
        """Return the share of the peak that this speed takes.

        A timed peak that is below it was none: the fastest speed seen stands for it from then on. A stated
        one is not touched, so that a share above 1 shows that it is wrong.
        """
        flops = self.flops_per_token * tokens_per_s
        if self.is_timed:
            self.peak_flops = max(self.peak_flops, flops)
        return flops / self.peak_flops


def device_peak(device: str, cann: Path) -> Peak | None:
    """Return the peak of this process's device; None where nothing states it.

    Args:
        device: CPU or Ascend, already chosen.
        cann: Folder of CANN.
    """
    if device == "Ascend":
        import mindspore as ms

        return ascend_peak(str(ms.hal.get_device_name(0)), cann)
    return measured_peak()


def ascend_peak(chip: str, cann: Path) -> Peak | None:
    """Return the bfloat16 peak of an NPU such as Ascend910B2, from CANN's description of it."""
    names = (f"{folder}/{chip}.ini" for folder in PLATFORM_DIRS)
    path = next((path for name in names for path in cann.glob(name)), None)
    if path is None:
        return None
    description = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        description.read(path, encoding="utf-8")
        cores = description.getint("SoCInfo", "cube_core_cnt", fallback=0) or description.getint(
            "SoCInfo", "ai_core_cnt"
        )
        spec = description["AICoreSpec"]
        megahertz, *sides = (int(spec[f"cube_{key}"]) for key in ("freq", "m_size", "n_size", "k_size"))
    except (configparser.Error, KeyError, ValueError, UnicodeDecodeError):
        return None
    flops = 2.0 * cores * megahertz * 1e6 * np.prod(sides)
    cube = "x".join(map(str, sides))
    return Peak(float(flops), f"{cores} cubes of {cube} at {megahertz} MHz, {path.name} of CANN")


@functools.cache
def measured_peak() -> Peak:
    """Time a product of matrices on a CPU, once, with the threads of this process."""
    import mindspore as ms

    square = ms.Tensor(np.ones((SIDE, SIDE), np.float32))
    best_s, spent_s = float("inf"), 0.0
    for number in range(1 + TIMES):  # the first one sets up
        if number > 1 and spent_s > ENOUGH_S:
            break
        started_s = time.perf_counter()
        ms.ops.matmul(square, square).asnumpy()
        took_s = time.perf_counter() - started_s
        best_s, spent_s = min(best_s, took_s), spent_s + took_s
    return Peak(
        2.0 * SIDE**3 / best_s,
        f"a float32 product of {SIDE}x{SIDE} matrices, timed at the start",
        is_timed=True,
    )
