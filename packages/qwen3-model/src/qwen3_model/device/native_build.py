"""Compile C++ kernels for this very machine at their first use, once per machine and version."""

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qwen3_model.command.files import write_atomically
from qwen3_model.command.private_files import PRIVATE, make_private, require_private
from qwen3_model.device.processor import processor_features
from qwen3_model.errors import Qwen3Error

COMPILERS = ("c++", "g++", "clang++")
# Never -ffast-math: sums have a stated order, and square roots and quotients are those of IEEE 754.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
TIMEOUT_S = 300.0


class BuildError(Qwen3Error):
    """The kernels could not be compiled; the portable ones do the same, slower."""


def compiled_library(
    sources: Sequence[Path],
    cache_dir: Path,
    *,
    flags: Sequence[str] = FLAGS,
    compilers: Sequence[str] = COMPILERS,
    timeout_s: float = TIMEOUT_S,
) -> Path:
    """Return the shared library of `sources`, compiled now unless `cache_dir` has it. It can be loaded.

    Args:
        sources: Files of C++: the first is compiled, the others are what it includes.
        cache_dir: A folder of the user's own; made when missing.
        flags: The compiler's flags.
        compilers: Commands to look for; the first that is there counts.
        timeout_s: Seconds that the compiler may take.

    Raises:
        BuildError: There is no C++ compiler, it fails, or the folder cannot be written, or others could
            have written it or the library.
    """
    try:
        library = make_private(cache_dir) / f"kernels-{_fingerprint(sources, flags)}.so"
        if not os.path.lexists(library):
            command = [_find_compiler(compilers), *flags, str(sources[0])]
            write_atomically(library, lambda temporary: _compile(command, temporary, timeout_s))
        require_private(library)  # what is loaded is run
        ctypes.CDLL(str(library))
    except BuildError:
        raise
    except (OSError, Qwen3Error) as error:
        raise BuildError(f"the native kernels cannot be kept or loaded: {error}") from None
    return library


def _find_compiler(compilers: Sequence[str]) -> str:
    found = next((path for name in compilers if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError("there is no C++ compiler; install g++")
    return found


def _compile(command: Sequence[str], target: Path, timeout_s: float) -> None:
    # In a session of its own: what the compiler starts ends with it.
    with subprocess.Popen(
        [*command, "-o", str(target)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            reason = f"{command[0]} took more than {timeout_s:g} s for the native kernels"
            raise BuildError(reason) from None
        finally:
            if process.returncode is None:  # too late, or Ctrl-C
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        reason = next(iter(errors.strip().splitlines()), f"exit code {process.returncode}")
        raise BuildError(f"{command[0]} cannot compile the native kernels: {reason}")
    target.chmod(PRIVATE)  # whatever the umask is


def _fingerprint(sources: Sequence[Path], flags: Sequence[str]) -> str:
    """Return a name for what the library depends on: the sources, the flags and the processor."""
    content = hashlib.sha256(" ".join(flags).encode())
    for path in sources:
        content.update(path.read_bytes())
    # A home folder may be shared by different machines.
    content.update(f"{platform.machine()} {processor_features()}".encode())
    return content.hexdigest()[:16]
