"""What an Ascend machine has and lacks: NPUs, driver, CANN and its Python packages, and whether they fit."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from qwen3_model.device.cann import CANN_VARIABLES, cann_dir
from qwen3_model.ranks.msrun.checks import LaunchSettings, count_ascend_devices
from qwen3_train.doctor.finding import FAIL, PASS, SKIPPED, Finding

ASCEND_CHECKS = ("npu", "driver", "cann", "hccl", "import hccl", "import te")
PACKAGES = {
    "hccl": "workers of msrun cannot meet without it",
    "te": "kernels that CANN compiles on the fly need it",
}
"""Python packages that come with CANN, and why MindSpore imports each."""
NPU_SMI_S, IMPORT_S = 60, 120


def ascend_findings(launch: LaunchSettings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what this machine has and lacks for workers on NPUs."""
    number = count_ascend_devices(environment.get("ASCEND_RT_VISIBLE_DEVICES"))
    enough = number >= launch.local_worker_num
    yield Finding(
        "npu", PASS if enough else FAIL, f"{number} for {launch.local_worker_num} workers of this machine",
        "give the container its /dev/davinci*, set ASCEND_RT_VISIBLE_DEVICES, or start fewer workers",
    )  # fmt: skip
    yield _driver()
    folder = cann_dir(environment)
    yield _cann(folder, environment, accepted_versions())
    yield _hccl(folder)
    for name, reason in PACKAGES.items():
        yield _package(name, reason, environment)


def _driver() -> Finding:
    remedy = "install or repair the NPU driver; in a container mount /usr/local/Ascend/driver and npu-smi"
    tool = shutil.which("npu-smi")
    if tool is None:
        return Finding("driver", FAIL, "npu-smi is not on PATH", remedy)
    try:
        done = subprocess.run([tool, "info"], capture_output=True, text=True, check=False, timeout=NPU_SMI_S)
    except subprocess.TimeoutExpired:
        return Finding("driver", FAIL, f"npu-smi gave no answer in {NPU_SMI_S} s", remedy)
    said = re.search(r"Version: *(\S+)", done.stdout)
    text = f"npu-smi {said[1]}" if said else f"npu-smi ended with code {done.returncode}"
    return Finding("driver", PASS if done.returncode == 0 else FAIL, text, remedy)


def accepted_versions() -> tuple[str, ...]:
    """Return the versions of CANN that the installed MindSpore accepts by its own check; () if unknown.

    Read from its source, since to import MindSpore on a machine whose CANN does not fit can end the process.
    """
    found = importlib.util.find_spec("mindspore")
    if found is None or found.origin is None:
        return ()
    path = Path(found.origin).parent / "run_check/_check_version.py"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    stated = re.search(r"class AscendEnvChecker.*?self\.version = \[(.*?)\]", text, re.DOTALL)
    return tuple(re.findall(r"\d+\.\d+", stated[1])) if stated else ()


def _cann(folder: Path, environment: Mapping[str, str], accepted: tuple[str, ...]) -> Finding:
    remedy = "install CANN (toolkit and kernels) and run `source .../ascend-toolkit/set_env.sh` before this"
    if not folder.is_dir():
        return Finding("cann", FAIL, f"not at {folder}", remedy)
    if not any(environment.get(name) for name in CANN_VARIABLES):
        return Finding("cann", FAIL, f"at {folder}, but its environment is not set", remedy)
    version = _cann_version(folder)
    if version is None:
        return Finding("cann", FAIL, f"of no version at {folder}", remedy)
    if accepted and ".".join(version.split(".")[:2]) not in accepted:
        remedy = f"install CANN {' or '.join(accepted)}, or the MindSpore that goes with CANN {version}"
        return Finding("cann", FAIL, f"{version} at {folder}, which this MindSpore does not accept", remedy)
    return Finding("cann", PASS, f"{version} at {folder}", remedy)


def _cann_version(folder: Path) -> str | None:
    # MindSpore reads the first of these.
    named = [folder / "compiler/version.info", *sorted(folder.glob("*/ascend_toolkit_install.info"))]
    for path in (*named, *sorted(folder.glob("version.*"))):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if found := re.search(r"(?i)version *= *\[?([^\s\]]+)", text):
            return found[1]
    return None


def _hccl(folder: Path) -> Finding:
    libraries = sorted(folder.glob("lib64/libhccl.so")) + sorted(folder.glob("*/lib64/libhccl.so"))
    remedy = "install the CANN toolkit whole: libhccl.so belongs to it"
    text = str(libraries[0]) if libraries else f"no libhccl.so under {folder}"
    return Finding("hccl", PASS if libraries else FAIL, text, remedy)


def _package(name: str, reason: str, environment: Mapping[str, str]) -> Finding:
    """Import a package in a process of its own, since CANN's load libraries that may end it."""
    what = f"import {name}"
    remedy = f"`source .../set_env.sh`, or pip install CANN's {name}-*.whl: {reason}"
    command = [sys.executable, "-c", f"import {name}; print({name}.__file__)"]
    try:
        done = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, check=False, timeout=IMPORT_S
        )
    except subprocess.TimeoutExpired:
        return Finding(what, FAIL, f"not done in {IMPORT_S} s", remedy)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
        return Finding(what, FAIL, lines[-1], remedy)
    return Finding(what, PASS, done.stdout.strip().splitlines()[-1], remedy)


def no_ascend(reason: str) -> Iterator[Finding]:
    """Yield each check of this module as skipped."""
    for what in ASCEND_CHECKS:
        yield Finding(what, SKIPPED, reason)
