"""The elements of a JSON array as raw bytes, without holding the array.

Written here, since json and orjson parse an array as a whole; orjson parses each element.
"""

import re
from collections.abc import Iterable, Iterator

from qwen3_model.errors import FormatError

# A whole string, a bracket, a comma, or the quote of a string that goes on in the next chunk.
MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)
INSIDE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
QUOTE, COMMA = 0x22, 0x2C


def split_array(chunks: Iterable[bytes], name: str, longest: int) -> Iterator[bytes]:
    """Yield the raw JSON of each element of the array that `chunks` spell.

    Brackets are matched and strings skipped; whether an element is valid JSON is for its parser to say.

    Raises:
        FormatError: The text is no array, is cut, or has an element of more than `longest` bytes.
    """
    buffer, array = bytearray(), _Array()
    for chunk in chunks:
        buffer += chunk
        for first, end in array.elements(buffer):
            yield from _element(buffer[first:end], is_last=array.ended, name=name)
        array.forget(buffer)
        if array.ended:
            _refuse_rest(buffer, name)
        elif len(buffer) > longest:
            raise FormatError(
                f"{name} has an element of more than {longest} bytes in its JSON array; raise "
                "--max-record-bytes where memory for several times as much is free, or cut the element"
            )
    if not array.ended:
        raise FormatError(f"{name} ends inside its JSON array; it was cut, so fetch it again")


class _Array:
    """How far an array was read; no byte of it is looked at twice, however long a text in it is."""

    def __init__(self) -> None:
        self.depth = self.begin = self.scanned = 0
        self.begun = self.ended = self.in_string = False

    def elements(self, buffer: bytearray) -> Iterator[tuple[int, int]]:
        """Yield where the elements begin and end that are whole in `buffer`."""
        if self.in_string:
            self._skip_string(buffer, self.scanned)
        if self.in_string or self.ended:
            return
        for mark in MARK.finditer(buffer, self.scanned):
            letter = buffer[mark.start()]
            if letter == QUOTE and mark.end() - mark.start() == 1:
                self._skip_string(buffer, mark.end())
                return
            if letter != QUOTE and self._count_letter(letter, mark.end()):
                first, self.begin, self.ended = self.begin, mark.end(), self.depth == 0
                yield first, mark.start()
                if self.ended:
                    return
        self.scanned = len(buffer)

    def forget(self, buffer: bytearray) -> None:
        """Take what was read from the front of `buffer`."""
        del buffer[: self.begin]
        self.scanned, self.begin = self.scanned - self.begin, 0

    def _count_letter(self, letter: int, end: int) -> bool:
        """Count a bracket or comma; return whether an element ends before it."""
        self.depth += (letter in b"[{") - (letter in b"]}")
        if self.depth == 1 and letter == 0x5B and not self.begun:
            self.begun, self.begin = True, end
            return False
        return self.depth == 0 or (self.depth == 1 and letter == COMMA)

    def _skip_string(self, buffer: bytearray, begin: int) -> None:
        """Read on inside of a string, from `begin`."""
        inside = INSIDE.match(buffer, begin)
        end = begin if inside is None else inside.end()
        self.in_string = end == len(buffer) or buffer[end] != QUOTE
        self.scanned = end if self.in_string else end + 1


def _element(raw: bytearray, *, is_last: bool, name: str) -> Iterator[bytes]:
    element = bytes(raw).strip()
    if element:
        yield element
    elif not is_last:
        raise FormatError(f"{name} has two commas in a row in its JSON array; mend it")


def _refuse_rest(buffer: bytearray, name: str) -> None:
    if buffer.strip():
        raise FormatError(
            f"{name} goes on after the end of its JSON array; if it is JSON lines, name it .jsonl"
        )
