"""Lines of a log that clients cannot flood or forge."""

import asyncio
import json
import logging
import time
from collections.abc import Callable

LINES_AT_ONCE, LINES_PER_S = 2000, 50
"""Lines about requests at once, and per second; no server that answers with a model comes near them."""
FAULTS_AT_ONCE, FAULTS_PER_S = 20, 0.2
"""Lines about faults outside of requests, each with a traceback, at once and per second."""


class Throttle:
    """Lets some lines through at once and so many a second on the average, and counts the others."""

    def __init__(
        self,
        log: Callable[[str], None],
        *,
        at_once: int,
        per_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._at_once, self._per_s, self._now = log, at_once, per_s, now
        self._room, self._seen_s, self._left_out = float(at_once), now(), 0

    def __call__(self, line: str) -> None:
        """Log a line, or leave it out."""
        seen_s = self._now()
        self._room = min(self._at_once, self._room + (seen_s - self._seen_s) * self._per_s)
        self._seen_s = seen_s
        if self._room < 1:
            self._left_out += 1
            return
        self._room -= 1
        if self._left_out:
            self._log(json.dumps({"left_out_lines": self._left_out}))
            self._left_out = 0
        self._log(line)


class HttpLog(logging.Handler):
    """Writes what uvicorn says of broken requests."""

    def __init__(self, log: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        line = {"error": record.getMessage()}
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        self._log(json.dumps(line))


def write_faults(loop: asyncio.AbstractEventLoop, logger: logging.Logger, log: Callable[[str], None]) -> None:
    """Let what goes wrong in the event loop and in uvicorn be lines of the log, a few of them."""
    throttled = Throttle(log, at_once=FAULTS_AT_ONCE, per_s=FAULTS_PER_S)

    def log_fault(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        reason = context.get("exception")
        throttled(json.dumps({"error": context["message"], "reason": repr(reason) if reason else None}))

    loop.set_exception_handler(log_fault)
    logger.handlers[:] = [HttpLog(throttled)]
    logger.propagate = False
