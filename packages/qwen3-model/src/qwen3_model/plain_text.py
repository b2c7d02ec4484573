"""Text of files and clients for a terminal, which would obey control characters in it."""

import re

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""C0 and C1 but line end and tab: escape sequences set window titles, colours and more."""


def without_controls(text: str) -> str:
    r"""Return `text` with control characters spelled out (`\x1b`), line ends and tabs as they are."""
    return CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
