"""Compile the C++ operations for this very machine at their first use, once per machine and version."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qwen3_model.errors import Qwen3Error
from qwen3_model.files import write_atomically
from qwen3_model.private_files import PRIVATE, make_private, require_private

SOURCE = Path(__file__).parent / "kernels.cc"
COMPILERS = ("c++", "g++", "clang++")
# No -ffast-math: a square root or a quotient must be the one that IEEE 754 has.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
TIMEOUT_S = 120


class BuildError(Qwen3Error):
    """The operations could not be compiled; the portable ones do the same, slower."""


def native_library(cache_dir: Path | None = None, compilers: Sequence[str] = COMPILERS) -> Path:
    """Return the shared library of the operations, compiled now unless the folder of the cache has it.

    Args:
        cache_dir: That folder; `~/.cache/qwen3-train` when left out.
        compilers: Commands to look for, the first one counts.

    Raises:
        BuildError: There is no C++ compiler, it fails, or the folder cannot be written, or others could
            have written it or the library.
    """
    try:
        cache_dir = cache_dir or Path.home() / ".cache/qwen3-train"
        library = make_private(cache_dir) / f"native-{_fingerprint()}.so"
        if not os.path.lexists(library):
            write_atomically(library, lambda temporary: _compile(temporary, compilers))
        require_private(library)  # what is loaded is run
        ctypes.CDLL(str(library))
    except BuildError:
        raise
    except (OSError, RuntimeError, Qwen3Error) as error:  # RuntimeError: there is no home
        raise BuildError(f"the native operations cannot be kept or loaded: {error}") from None
    return library


def _compile(target: Path, compilers: Sequence[str]) -> None:
    found = next((path for name in compilers if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError("there is no C++ compiler; install g++")
    command = [found, *FLAGS, "-o", str(target), str(SOURCE)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        reason = next(iter(error.stderr.strip().splitlines()), f"exit code {error.returncode}")
        raise BuildError(f"{found} cannot compile the native operations: {reason}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{found} took more than {TIMEOUT_S} s for the native operations") from None
    target.chmod(PRIVATE)  # whatever the umask is


def _fingerprint() -> str:
    """Return a name for what the library depends on: source, flags and processor."""
    content = hashlib.sha256(" ".join(FLAGS).encode())
    content.update(SOURCE.read_bytes())
    content.update(f"{platform.machine()} {_processor_features()}".encode())
    return content.hexdigest()[:16]


def _processor_features() -> str:
    """Return what tells processors apart, since a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
