"""Whether CANN, without which MindSpore cannot use an Ascend, is set up in an environment."""

import ctypes.util
import os
from collections.abc import Mapping
from pathlib import Path

from qwen3_model.errors import ConfigError

CANN_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
CANN_DIR = Path("/usr/local/Ascend/ascend-toolkit/latest")
"""Where CANN's installer puts it."""


def cann_dir(environment: Mapping[str, str]) -> Path:
    """Return the folder of CANN: the one that the environment names, or the installer's."""
    named = next((environment[name] for name in CANN_VARIABLES if environment.get(name)), None)
    return Path(named) if named else CANN_DIR


def require_cann(environment: Mapping[str, str]) -> None:
    """Raise ConfigError when a process with `environment` would not find CANN's libraries.

    MindSpore is linked against libascendcl.so, which the loader looks for in LD_LIBRARY_PATH and the system's
    folders.
    """
    folders = (environment.get("LD_LIBRARY_PATH") or "").split(os.pathsep)
    if any(Path(folder, "libascendcl.so").exists() for folder in folders if folder):
        return
    if ctypes.util.find_library("ascendcl") is None:
        script = CANN_DIR.parent / "set_env.sh"
        raise ConfigError(
            f"this machine has an NPU but CANN is not set up; `source {script}` (or where CANN is) "
            "before this, or choose the CPU (--device cpu); `qwen3-train doctor` says more"
        )
