"""A process that outlives the launcher to end its job.

It is called as `python -m qwen3_model.ranks.msrun.guard JOB PATIENCE_S`.

The launcher starts it and holds the other end of its standard input. When the launcher dies in whatever way,
the kernel closes that pipe, and the guard ends the job. A launcher that has cleaned up writes a byte first.
(PR_SET_PDEATHSIG would reach msrun and its workers, but not what the workers have started.)
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from qwen3_model.ranks.msrun.processes import PATIENCE_S, end_job


@contextmanager
def guarded(job: str, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """End `job` when the block ends, and also when this process dies within it."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "qwen3_model.ranks.msrun.guard", job, str(patience_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        end_job(job, patience_s=patience_s)
        with suppress(BrokenPipeError):
            guard.communicate(b".")


def main() -> None:
    """Wait for the launcher's end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not sys.stdin.buffer.read():
        end_job(sys.argv[1], patience_s=float(sys.argv[2]))


if __name__ == "__main__":
    main()
