"""What Linux states about the processor: its name, and the features that tell processors apart."""

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Return the processor's name; the machine's architecture where Linux states none, as on Arm."""
    stated = (line.partition(":")[2].strip() for line in _lines() if line.startswith("model name"))
    return next(stated, platform.machine())


def processor_features() -> str:
    """Return the lines by which compiled code for one processor may not fit another."""
    lines = _lines()
    if not lines:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _lines() -> list[str]:
    try:
        return CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
