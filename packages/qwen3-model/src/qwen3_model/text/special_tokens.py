"""Special tokens that a message spells, kept apart from those that the chat template writes.

`hide` breaks each in the messages, before they are rendered; `cut` finds the template's own in the rendering;
`reveal` gives a part back the text of the messages. Training and generation use the same three steps, so both
make the same ids of a conversation.
"""

import re
from collections.abc import Iterable, Mapping

MARK = "\ue0f3"
"""Breaks a special token behind its first character; a private-use character, doubled where a text has it."""
MARKS = re.compile(f"{MARK}({MARK}?)")


class SpecialTokens:
    """The special tokens of a tokenizer, by their text."""

    def __init__(self, texts: Iterable[str]) -> None:
        # Longest first: of two that begin alike the longer one is found.
        self._texts = sorted(texts, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, self._texts))})") if self._texts else None

    def hide(self, value: object) -> object:
        """Return a JSON value in which no text contains a special token."""
        if isinstance(value, str):
            text = value.replace(MARK, MARK + MARK)
            for token in self._texts:
                text = text.replace(token, f"{token[0]}{MARK}{token[1:]}")
            return text
        if isinstance(value, Mapping):
            return {key: self.hide(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(inner) for inner in value]
        return value

    def hide_each(self, entries: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
        """Return messages or tools in which no text contains a special token; the template refuses others."""
        return [
            {key: self.hide(inner) for key, inner in entry.items()} if isinstance(entry, Mapping) else entry
            for entry in entries
        ]

    def cut(self, rendered: str) -> list[str]:
        """Return the parts of a rendering: special tokens, and the texts between them; none is empty."""
        parts = self._pattern.split(rendered) if self._pattern else [rendered]
        return [part for part in parts if part]


def reveal(part: str) -> str:
    """Return a part of a rendering with the text that `hide` broke whole again."""
    return MARKS.sub(r"\1", part)
