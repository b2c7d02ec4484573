"""Text of files and clients for a terminal, which would obey control characters in it."""

import re

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""C0 and C1 but line end and tab: escape sequences set window titles, colours and more; and what turns the
direction of text, which makes a name look like another."""
SURROGATES = re.compile("[\ud800-\udfff]")


def is_text(text: str) -> bool:
    """Return whether a string is Unicode text: without the half characters that JSON escapes can spell."""
    return SURROGATES.search(text) is None


def shortened(text: str, most: int = 4000) -> str:
    """Return `text`, without its middle where it has more than `most` letters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} ... {text[-most // 2 :]}"


def counted(number: int, noun: str, spec: str = "") -> str:
    """Return a number with its noun, which takes an s unless there is one: 1 document, 2 documents.

    Args:
        number: How many.
        noun: The noun for one, whose plural ends in s.
        spec: How the number is formatted, such as `,`.
    """
    return f"{number:{spec}} {noun}{'' if number == 1 else 's'}"


def without_controls(text: str) -> str:
    r"""Return `text` with control characters spelled out (`\x1b`), line ends and tabs as they are."""
    return CONTROLS.sub(_spell_character, text)


def one_line(text: str) -> str:
    """Return a text in which all that is not printable is spelled: one line, which moves no cursor."""
    return text if text.isprintable() else "".join(map(_printable, text))


def as_message(text: str) -> str:
    """Return what an error or a note says: not too long, and nothing in it looks like a line of ours."""
    return without_controls(shortened(text.rstrip("\n"))).replace("\n", "\n  ")


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")


def _spell_character(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
