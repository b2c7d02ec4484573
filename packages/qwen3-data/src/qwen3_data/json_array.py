"""The elements of a JSON array as raw bytes, without holding the array."""

import re
from collections.abc import Iterable, Iterator

from qwen3_model.errors import FormatError

# A whole string, a bracket, a comma, or the quote of a string that goes on in the next chunk.
MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)
QUOTE, COMMA = 0x22, 0x2C


def split_array(chunks: Iterable[bytes], name: str, longest: int) -> Iterator[bytes]:
    """Yield the raw JSON of each element of the array that `chunks` spell.

    Brackets are matched and strings skipped; whether an element is valid JSON is for its parser to say.

    Raises:
        FormatError: The text is no array, is cut, or has an element of more than `longest` bytes.
    """
    held, depth, begin, scanned = bytearray(), 0, 0, 0
    begun = ended = False
    for chunk in chunks:
        held += chunk
        for mark in MARK.finditer(held, scanned):
            letter = held[mark.start()]
            if ended or (letter == QUOTE and mark.end() - mark.start() == 1):
                scanned = mark.start()
                break
            scanned = mark.end()
            if letter == QUOTE:
                continue
            depth += (letter in b"[{") - (letter in b"]}")
            if depth == 1 and letter == 0x5B and not begun:
                begun, begin = True, mark.end()
            elif depth == 0 or (depth == 1 and letter == COMMA):
                yield from _element(held[begin : mark.start()], is_last=depth == 0, name=name)
                begin, ended = mark.end(), depth == 0
        else:
            scanned = len(held)
        del held[:begin]
        scanned, begin = scanned - begin, 0
        if len(held) > longest and not ended:
            raise FormatError(
                f"{name} has an element of more than {longest} bytes in its JSON array; raise "
                "--max-record-bytes where memory for several times as much is free, or cut the element"
            )
        if ended:
            _refuse_rest(held, name)
    if not ended:
        raise FormatError(f"{name} ends inside its JSON array; it was cut, so fetch it again")


def _element(raw: bytearray, *, is_last: bool, name: str) -> Iterator[bytes]:
    element = bytes(raw).strip()
    if element:
        yield element
    elif not is_last:
        raise FormatError(f"{name} has two commas in a row in its JSON array; mend it")


def _refuse_rest(held: bytearray, name: str) -> None:
    if held.strip():
        raise FormatError(
            f"{name} goes on after the end of its JSON array; if it is JSON lines, name it .jsonl"
        )
