"""Texts too large to hold as a Python string: up to four bytes a character would be needed for all of it."""

import os
import re
from collections.abc import Iterator

import orjson

LONG_BYTES = 16 << 20
"""Records from this size on are kept as bytes and decoded bit by bit."""
CHUNK_BYTES = 4 << 20
OVERLAP = 64
"""Characters in which two chunks overlap for a search; no special token is longer."""

STRING = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
# Offsets outside escapes and UTF-8 sequences: before a space, before the first byte of a character, or before
# an escape that neither follows a backslash nor is the second half of a pair.
BORDER = re.compile(rb"(?=[ \xc0-\xff])|(?<!\\)(?=\\u(?![dD][c-fC-F]))")
PLACEHOLDER = f"long-{os.urandom(16).hex()}-"
"""Stands for a long string while the rest of its record is parsed; nobody can guess it."""


class LongText:
    """The text of a JSON string or of a file, still as its bytes."""

    def __init__(self, raw: bytes, begin: int, end: int, *, is_json: bool) -> None:
        self._raw, self._begin, self._end, self._is_json = raw, begin, end, is_json

    def chunks(self) -> Iterator[str]:
        """Yield the text in order, a few million characters at a time.

        Raises:
            ValueError: The bytes are no text.
        """
        begin = self._begin
        while begin < self._end:
            end = self._end
            if end - begin > CHUNK_BYTES:
                border = BORDER.search(self._raw, begin + CHUNK_BYTES, end)
                end = border.start() if border is not None else end
            part = self._raw[begin:end]
            yield orjson.loads(b'"%b"' % part) if self._is_json else part.decode("utf-8")
            begin = end

    def find(self, pattern: re.Pattern[str]) -> bool:
        """Return whether `pattern` occurs, reading all of the text, which also proves that it is one."""
        found, tail = False, ""
        for chunk in self.chunks():
            found = found or pattern.search(tail + chunk) is not None
            tail = chunk[-OVERLAP:]
        return found


def load_long_record(raw: bytes) -> object:
    """Parse a record as orjson does, its long strings as LongText.

    Raises:
        orjson.JSONDecodeError: It is not JSON.
    """
    long_texts: dict[str, LongText] = {}
    skeleton = bytearray()
    done = 0
    for string in STRING.finditer(raw):
        begin, end = string.span(1)
        if end - begin < CHUNK_BYTES:
            continue
        name = f"{PLACEHOLDER}{len(long_texts)}"
        long_texts[name] = LongText(raw, begin, end, is_json=True)
        skeleton += raw[done:begin] + name.encode()
        done = end
    skeleton += raw[done:]
    return _restore(orjson.loads(skeleton), long_texts)


def _restore(value: object, long_texts: dict[str, LongText]) -> object:
    """Put long texts back; in arrays as strings."""
    if isinstance(value, dict):
        return {key: _restore(entry, long_texts) for key, entry in value.items()}
    if isinstance(value, list):
        restored = [_restore(entry, long_texts) for entry in value]
        return ["".join(one.chunks()) if isinstance(one, LongText) else one for one in restored]
    return long_texts.get(value, value) if isinstance(value, str) else value
