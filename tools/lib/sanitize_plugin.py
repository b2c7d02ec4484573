"""pytest's plugin of `tools/sanitize_kernels`: the kernels are compiled with sanitizers."""

import os
import subprocess
import tempfile
from pathlib import Path

from qwen3_infer.native import build

# With -O3 the sanitizers take minutes to compile.
SANITIZERS = (
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
)


def pytest_configure() -> None:
    """Add the flags, and show once that the sanitizers see what they should."""
    vars(build)["FLAGS"] = (*build.FLAGS, *SANITIZERS)
    vars(build)["TIMEOUT_S"] = 600  # the compiler takes several times as long
    os.environ.pop("LD_PRELOAD")  # it is in this process; the compiler is not to be looked at
    _prove()


def _prove() -> None:
    """Read behind an array in a process of its own, which must not survive it.

    Raises:
        RuntimeError: The sanitizers did not notice.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "a.cc"), Path(folder, "a.out")
        body = "int main(int n, char**) { volatile int* a = new int[2]; return a[n + 1]; }\n"
        source.write_text(body, encoding="ascii")
        subprocess.run(["g++", *SANITIZERS, "-o", program, source], check=True)
        done = subprocess.run([program], capture_output=True, text=True, check=False)
    if done.returncode == 0 or not any(word in done.stderr for word in ("insufficient space", "overflow")):
        raise RuntimeError("the sanitizers do not see a read behind an array")
