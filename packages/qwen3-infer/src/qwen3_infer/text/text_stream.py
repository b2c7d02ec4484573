"""Text out of tokens as they come: whole characters only, and nothing after a stop string."""

from collections.abc import Sequence

from qwen3_model.text.tokenizer import Qwen3Tokenizer

BROKEN = "\ufffd"
LONGEST_CHARACTER = 4
"""Bytes of UTF-8."""
MOST_HELD = 16
"""Tokens without a whole character at their end, before what is certain of them is given out."""


class TextStream:
    """Turn one request's tokens into text, piece by piece.

    The pieces together are the text of all tokens, up to where the first stop string begins. A character
    whose bytes are spread over several tokens, or the beginning of a stop string, stays in the buffer until
    it is decided.
    """

    def __init__(self, tokenizer: Qwen3Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        self._ids: list[int] = []
        # Tokens before `_start` are never decoded again; those up to `_read` are already text.
        self._start = self._read = 0
        self._buffer = ""
        self.text = ""
        """What has been given out."""
        self.is_stopped = False
        """Whether a stop string was found."""

    def push(self, token: int) -> str:
        """Add a token and return the text that is now certain, often empty."""
        if not self._tokenizer.decode([token]):
            return ""  # a special token, which would be decoded again with each that follows
        self._ids.append(token)
        known = self._tokenizer.decode(self._ids[self._start : self._read])
        text = self._tokenizer.decode(self._ids[self._start :])
        if text.endswith(BROKEN):
            return self._release(self._find_settled(known, text), is_last=False)
        if len(text) <= len(known):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(text[len(known) :], is_last=False)

    def _find_settled(self, known: str, text: str) -> str:
        """Return what of a text that ends within a character no later byte can change; most often nothing."""
        if len(self._ids) - self._read < MOST_HELD:
            return ""
        # A character has at most four bytes and a token at least one: one of four cuts lies between two.
        for cut in range(len(self._ids) - LONGEST_CHARACTER, len(self._ids) - 2 * LONGEST_CHARACTER, -1):
            before = self._tokenizer.decode(self._ids[self._start : cut])
            if text.startswith(before):
                self._start, self._read = self._read, cut
                return before[len(known) :]
        return ""

    def finish(self) -> str:
        """Return the rest of the buffer; bytes that are no whole character become U+FFFD."""
        known = self._tokenizer.decode(self._ids[self._start : self._read])
        text = self._tokenizer.decode(self._ids[self._start :])
        self._start = self._read = len(self._ids)
        return self._release(text[len(known) :], is_last=True)

    def _release(self, new: str, *, is_last: bool) -> str:
        if self.is_stopped:
            return ""
        self._buffer += new
        found = [at for stop in self._stop_strings if (at := self._buffer.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            certain = min(found)
        else:
            certain = len(self._buffer) - (0 if is_last else self._count_undecided())
        given, self._buffer = self._buffer[:certain], self._buffer[certain:]
        self.text += given
        return given

    def _count_undecided(self) -> int:
        """Return the length of the longest end of the buffer that a stop string begins with."""
        for length in range(min(len(self._buffer), max(map(len, self._stop_strings), default=0)), 0, -1):
            if any(stop.startswith(self._buffer[-length:]) for stop in self._stop_strings):
                return length
        return 0
