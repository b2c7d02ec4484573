"""What can be found out about a machine without MindSpore running: versions, devices, CANN, room, ports."""

import importlib.metadata
import re
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from qwen3_model.device.simulation import read_simulation
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.msrun.checks import LaunchSettings, check_launch
from qwen3_train.doctor.ascend import ascend_findings, no_ascend
from qwen3_train.doctor.finding import FAIL, PASS, SKIPPED, Finding

OLDEST_MINDSPORE, FIRST_UNTRIED_MINDSPORE = (2, 8), (2, 11)
LEAST_DISK_GB, LEAST_MEMORY_GB, LEAST_FILES = 5.0, 4.0, 1024


def machine_findings(
    device: str, launch: LaunchSettings, output_dir: Path, environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Yield what this machine has and lacks for a run on `device` with these workers."""
    yield _python()
    yield _mindspore()
    yield _numpy()
    yield _packages()
    if device != "Ascend":
        yield from no_ascend("not present; this is a run on the CPU")
    elif read_simulation(environment):
        yield from no_ascend("a dry run needs none")
    else:
        yield from ascend_findings(launch, environment)
    yield _memory(launch.local_worker_num)
    yield _disk(output_dir)
    yield _open_files()
    yield _ports(launch)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Finding(
        "python", PASS if good else FAIL, f"{version} at {sys.executable}", "use Python 3.11 or 3.12"
    )


def _mindspore() -> Finding:
    remedy = "install MindSpore 2.8 to 2.10 with pip into this environment"
    version = _version("mindspore")
    if version is None:
        return Finding("mindspore", FAIL, "not installed", remedy)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    good = OLDEST_MINDSPORE <= numbers < FIRST_UNTRIED_MINDSPORE
    return Finding("mindspore", PASS if good else FAIL, version, remedy)


def _numpy() -> Finding:
    version = _version("numpy") or "not installed"
    good = version.startswith("1.")
    return Finding("numpy", PASS if good else FAIL, version, "pip install 'numpy<2': MindSpore breaks with 2")


def _packages() -> Finding:
    versions = [f"{name} {_version(name)}" for name in ("qwen3-model", "qwen3-train") if _version(name)]
    return Finding("packages", PASS, ", ".join(versions))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory(num_workers: int) -> Finding:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free_gb = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 / 1e9
    wanted_gb = LEAST_MEMORY_GB / 4 * (num_workers + 3)
    return Finding(
        "memory", PASS if free_gb >= wanted_gb else FAIL,
        f"{free_gb:.1f} GB are free, of which {wanted_gb:.0f} are needed to start {num_workers} workers",
        "end other processes; `qwen3-train plan` says what a run needs",
    )  # fmt: skip


def _disk(output_dir: Path) -> Finding:
    folder, remedy = output_dir.absolute(), "make room, or choose another --output-dir"
    while not folder.exists():
        folder = folder.parent
    try:
        # Rights alone do not tell of a file system that is read-only.
        tempfile.TemporaryFile(dir=folder).close()
        free_gb = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return Finding("disk", FAIL, f"{folder} cannot be written to: {error.strerror}", remedy)
    state = PASS if free_gb >= LEAST_DISK_GB else FAIL
    return Finding("disk", state, f"{free_gb:.1f} GB are free in {folder}", remedy)


def _open_files() -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    good = limit == resource.RLIM_INFINITY or limit >= LEAST_FILES
    return Finding("open files", PASS if good else FAIL, f"limit {limit}", f"ulimit -n {LEAST_FILES}")


def _ports(launch: LaunchSettings) -> Finding:
    where = f"{launch.master_addr}:{launch.master_port}"
    if launch.worker_num == 1:
        return Finding("ports", SKIPPED, "one process needs none; --worker-num N tries them")
    try:
        check_launch(launch)
    except ConfigError as error:
        return Finding("ports", FAIL, where, str(error))
    if launch.node_rank:
        return _check_reach(launch)
    return Finding("ports", PASS, f"{where} is free here, for the scheduler")


def _check_reach(launch: LaunchSettings) -> Finding:
    """Whether node 0's address can be reached at all; its port opens with its own doctor."""
    try:
        with socket.create_connection((launch.master_addr, launch.master_port), timeout=5):
            pass
    except ConnectionRefusedError:
        return Finding("ports", PASS, f"{launch.master_addr} answers; its port is not open yet")
    except OSError as error:
        return Finding(
            "ports", FAIL, f"{launch.master_addr}: {error}", "open the firewall between the nodes for it"
        )
    return Finding("ports", PASS, f"{launch.master_addr}:{launch.master_port} answers")
