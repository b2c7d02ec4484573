"""The peak of memory of a process, or of its device, so far."""

import resource

import mindspore as ms


def peak_memory_gb(device: str) -> float:
    """Return 10^9 bytes: of the device on Ascend, of the whole process on a CPU."""
    if device == "Ascend":
        return float(ms.runtime.max_memory_allocated()) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
