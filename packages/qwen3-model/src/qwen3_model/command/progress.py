"""One live line on stderr for long work; silent when stderr is not a terminal or with `--quiet`.

Written here, since click's progress bar shows no speed, and writes its label where there is no terminal.
"""

import math
import sys
import time
from types import TracebackType
from typing import Self

REFRESH_S = 0.2


class Progress:
    """Show how far counted work has come, its speed and the time left.

    Use as a context manager; `advance` may be called often, it draws at most five times a second.
    """

    def __init__(self, label: str, total: float | None, unit: str, *, quiet: bool = False) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self._visible = not quiet and sys.stderr.isatty()
        self._started_s = time.monotonic()
        self._drawn_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._visible:
            self._draw()
            sys.stderr.write("\n")

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more units as done; `note` is shown at the end of the line."""
        self.done += amount
        if self._visible and time.monotonic() - self._drawn_s >= REFRESH_S:
            self._draw(note)

    def _draw(self, note: str = "") -> None:
        self._drawn_s = time.monotonic()
        elapsed_s = max(self._drawn_s - self._started_s, 1e-9)
        speed = self.done / elapsed_s
        parts = [f"{self.label}: {_short(self.done)}"]
        if self.total:
            left_s = (self.total - self.done) / speed if speed else 0.0
            parts = [f"{self.label}: {self.done / self.total:4.0%} {_short(self.done)}/{_short(self.total)}"]
            parts.append(f"{left_s:.0f} s left")
        parts.append(f"{_short(speed)} {self.unit}/s")
        if note:
            parts.append(note)
        sys.stderr.write("\r\033[K" + ", ".join(parts))
        sys.stderr.flush()


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds as 1:02:03."""
    whole = max(0, math.ceil(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _short(amount: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(amount) >= size:
            return f"{amount / size:.2f}{letter}"
    return f"{amount:.0f}"
