"""Ctrl-C as a wish to end the answer, not the program."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 0.1


class Interrupt:
    """Waits for SIGINT in a thread of its own, for as long as its context lasts.

    A handler would not do: MindSpore puts its own in place whenever a graph runs, which ends the process. So
    the signal is blocked in all threads. The context must begin before MindSpore starts its threads.
    """

    def __init__(self) -> None:
        self.has_come = False
        """Whether it came since the answer began."""
        self.between_answers: Callable[[], None] | None = None
        """Called for a signal that comes outside an answer, in the thread; None ends the program."""
        self._is_answering = self._is_over = False

    def __enter__(self) -> "Interrupt":
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._thread = threading.Thread(target=self._wait, name="interrupt", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over = True
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    @contextmanager
    def during_answer(self) -> Iterator[None]:
        """Take the signal for the answer that is made meanwhile."""
        self.has_come, self._is_answering = False, True
        try:
            yield
        finally:
            self._is_answering = False

    def _wait(self) -> None:
        while not self._is_over:
            if signal.sigtimedwait({signal.SIGINT}, POLL_S) is None:
                continue
            self.has_come = True
            if self._is_answering:
                continue
            if self.between_answers is None:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self.between_answers()
