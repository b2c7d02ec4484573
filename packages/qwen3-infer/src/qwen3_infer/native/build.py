"""Compile the C++ kernels for this very machine at their first use, once per machine and version."""

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

SOURCE_DIR = Path(__file__).parent
SOURCE = SOURCE_DIR / "kernels.cc"
COMPILERS = ("c++", "g++", "clang++")
# Never -ffast-math: the order of a sum must not depend on the tile that computes it.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-pthread",
)
TIMEOUT_S = 300


class BuildError(Qwen3Error):
    """The kernels could not be compiled; the portable ones do the same, slower."""


def native_library(cache_dir: Path, num_threads: int, compilers: Sequence[str] = COMPILERS) -> Path:
    """Return the shared library of the kernels, compiled now unless `cache_dir` has it, set to `num_threads`.

    Raises:
        BuildError: There is no C++ compiler, it fails, or the folder cannot be written, or others could
            have written it or the library.
    """
    try:
        library = make_private(cache_dir) / f"kernels-{_fingerprint()}.so"
        if not os.path.lexists(library):
            write_atomically(library, lambda temporary: _compile(temporary, compilers))
        require_private(library)  # what is loaded is run
        loaded = ctypes.CDLL(str(library))
    except BuildError:
        raise
    except (OSError, Qwen3Error) as error:
        raise BuildError(f"the native kernels cannot be kept or loaded: {error}") from None
    loaded.qwen3_use_threads(num_threads)
    return library


def require_bfloat16(library: Path) -> None:
    """Raise when this processor cannot multiply bfloat16.

    Raises:
        BuildError: It cannot; the message says so.
    """
    if not ctypes.CDLL(str(library)).qwen3_has_bfloat16():
        raise BuildError(
            "--kernels native-bf16 needs a processor with AVX512-BF16, which this one has not; use native"
        )


def _compile(target: Path, compilers: Sequence[str]) -> None:
    found = next((path for name in compilers if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError("there is no C++ compiler; install g++")
    command = [found, *FLAGS, "-o", str(target), str(SOURCE)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        reason = next(iter(error.stderr.strip().splitlines()), f"exit code {error.returncode}")
        raise BuildError(f"{found} cannot compile the native kernels: {reason}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{found} took more than {TIMEOUT_S} s for the native kernels") from None
    target.chmod(PRIVATE)  # whatever the umask is


def _fingerprint() -> str:
    """Return a name for what the library depends on: the sources, the flags and the processor."""
    content = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(SOURCE_DIR.iterdir()):
        if path.suffix in {".cc", ".h"}:
            content.update(path.read_bytes())
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
