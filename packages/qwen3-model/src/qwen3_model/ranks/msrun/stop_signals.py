"""Signals that ask a job to save and end: SIGTERM and SIGUSR1, as Slurm, Kubernetes and `kill` send them.

A cluster may send them to every process of a job. The launcher therefore starts msrun, scheduler and workers
with both blocked, so that none dies of them, and each worker waits for them in a thread of its own.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_STOPPED = 75
"""Exit code of a job that has saved because it was asked to end, to be started again (EX_TEMPFAIL)."""


class StoppedExit(SystemExit):
    """Ends a worker that has saved because it was asked to end."""

    def __init__(self, reason: str) -> None:
        """Take what asked for it, as SIGTERM."""
        super().__init__(EXIT_STOPPED)
        self.reason = reason


class StopRequest:
    """What asks this process to save and end: a signal, or the time."""

    def __init__(self, stop_at_s: float | None = None) -> None:
        """Take the time since 1970 by which it must have ended; None for no limit."""
        self.stop_at_s = stop_at_s
        self.by: signal.Signals | None = None
        """The signal that came, if one has."""

    def put(self, number: int) -> None:
        """Remember a signal; the first one counts."""
        self.by = self.by or signal.Signals(number)


@contextmanager
def blocked_stop_signals() -> Iterator[None]:
    """Keep the signals from processes that are started within the block, and from their children."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def caught_stop_signals(request: StopRequest) -> Iterator[None]:
    """Put signals of this process into `request`; the second SIGTERM ends it at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if request.by is not None and number == signal.SIGTERM:
            raise SystemExit(128 + number)
        request.put(number)

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch_stop_signals(put: Callable[[int], None]) -> None:
    """Call `put` with each signal that another process sends, from a thread, also during a long call of C++.

    Its own SIGTERM, by which MindSpore ends a process that has lost the others, ends it.
    """
    # Before any thread of a library, which takes the mask over.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def wait() -> None:
        while True:
            info = signal.sigwaitinfo(STOP_SIGNALS)
            if info.si_pid == os.getpid():
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
                os.kill(os.getpid(), signal.SIGTERM)
            put(info.si_signo)

    Thread(target=wait, name="stop signals", daemon=True).start()
