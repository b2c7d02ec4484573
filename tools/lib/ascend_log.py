"""What MindSpore's log says of a dry run: the kernel of each operator, and the memory at the end."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

KERNEL = re.compile(
    r"\):(\d{4}-\d\d-\d\d-\d\d:\d\d:\d\d)\.(\d{3})\.(\d{3}) .*kernel opname:(\w+), kernel type:(\w+)"
)
KINDS = {
    "opapi_kernel": "aclnn", "acl_kernel": "aclop", "hccl_kernel": "hccl", "internal_kernel": "internal",
    "atb_kernel": "internal", "host_kernel": "host", "cpu_kernel": "host", "rt_kernel": "view",
}  # fmt: skip
"""MindSpore's types of kernels, as they are named here; a view moves nothing."""
PEAK = re.compile(r"peak memory usage \((without|with) fragments\): (\d+)M")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a graph."""

    time_s: float
    """When it was made, by the local clock."""
    operator: str
    kind: str
    """aclnn, aclop, hccl, internal, host, view, or MindSpore's own word for another."""


def read_kernels(log_dir: Path) -> list[Kernel]:
    """Return the kernels that were made, in their order."""
    kernels = []
    for line in _lines(log_dir):
        if match := KERNEL.search(line):
            moment = datetime.strptime(f"{match[1]}.{match[2]}{match[3]}", "%Y-%m-%d-%H:%M:%S.%f")
            kernels.append(Kernel(moment.timestamp(), match[4], KINDS.get(match[5], match[5])))
    return kernels


def read_peak(log_dir: Path) -> dict[str, int]:
    """Return the bytes of the whole run's peak without and with fragments; empty when it did not end well."""
    found = {match[1]: int(match[2]) << 20 for line in _lines(log_dir) for match in PEAK.finditer(line)}
    names = {"without": "peak_bytes", "with": "peak_with_fragments_bytes"}
    return {names[word]: value for word, value in found.items()}


def _lines(log_dir: Path) -> Iterator[str]:
    """Yield the lines of the fullest log, which has those of all levels from information on."""
    for path in sorted(log_dir.rglob("*.log.INFO.*")):
        with path.open(encoding="utf-8", errors="replace") as lines:
            yield from lines
