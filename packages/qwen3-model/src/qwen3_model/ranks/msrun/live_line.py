"""One line of a terminal that is drawn over itself; without a terminal, a plain line now and then."""

import shutil
import sys
import time
from types import TracebackType
from typing import Self

REFRESH_S = 0.2
PLAIN_S = 30.0
"""Seconds between lines where there is no terminal."""


class LiveLine:
    """Show the newest text on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._is_terminal = quiet, sys.stderr.isatty()
        self._text, self._shown, self._shown_s = "", "", 0.0
        self._asked_s = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._quiet or not self._text:
            return
        if self._text != self._shown:
            self._draw()
        if self._is_terminal:
            sys.stderr.write("\n")

    def is_due(self) -> bool:
        """Return whether a new text is due, which may cost a read of a shared file; False when quiet."""
        wait_s = REFRESH_S if self._is_terminal or not self._text else PLAIN_S
        if self._quiet or time.monotonic() - self._asked_s < wait_s:
            return False
        self._asked_s = time.monotonic()
        return True

    def show(self, text: str | None) -> None:
        """Replace the line by `text`, or take it away; may be called often."""
        if text is None:
            self._take_away()
            return
        self._text = text
        wait_s = REFRESH_S if self._is_terminal else PLAIN_S
        if not self._quiet and text != self._shown and time.monotonic() - self._shown_s >= wait_s:
            self._draw()

    def _take_away(self) -> None:
        if self._is_terminal and self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        self._text = self._shown = ""

    def _draw(self) -> None:
        self._shown, self._shown_s = self._text, time.monotonic()
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\033[K" + self._text[:width])
        else:
            sys.stderr.write(self._text + "\n")
        sys.stderr.flush()
