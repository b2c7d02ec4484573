"""An assistant's text as it comes, taken apart into thought, answer and calls of tools."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

THINK, THOUGHT_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one kind."""

    kind: str
    """"reasoning", "content" or "call"."""
    text: str
    """The piece; of a call the arguments as JSON."""
    name: str = ""
    """Of a call, the function's."""


class ChatOutput:
    """Take apart one answer, piece by piece.

    A thought is what stands between `<think>` at the beginning and `</think>`, without the white space around
    it; an end without a beginning ends nothing. What a tag may still become is held back.
    """

    def __init__(self, *, has_tools: bool, starts_in_thought: bool = False) -> None:
        self._has_tools = has_tools
        self._state = "thought" if starts_in_thought else "start"
        self._held = ""
        # Right after a tag white space belongs to neither side.
        self._skips_space = starts_in_thought
        self.num_calls = 0
        """Calls found so far."""

    def push(self, piece: str, *, is_last: bool = False) -> list[Part]:
        """Return the parts that are now certain."""
        self._held += piece
        parts: list[Part] = []
        state = None
        while state != self._state:
            state = self._state
            parts += getattr(self, f"_{state}")(is_last)
        return parts

    def _start(self, is_last: bool) -> Iterator[Part]:
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._enter("thought", text[len(THINK) :])
        elif is_last or not THINK.startswith(text):
            self._state = "answer"
        return iter(())

    def _thought(self, is_last: bool) -> Iterator[Part]:
        self._skip_space()
        thought, end, rest = self._held.partition(THOUGHT_END)
        if end:
            self._enter("answer", rest)
            yield from _text("reasoning", thought.rstrip())
        else:
            certain = len(self._held) if is_last else _certain(self._held, THOUGHT_END)
            shown = self._held[:certain].rstrip()
            self._held = self._held[len(shown) :]
            yield from _text("reasoning", shown)

    def _answer(self, is_last: bool) -> Iterator[Part]:
        self._skip_space()
        if self._has_tools and CALL in self._held:
            before, _, rest = self._held.partition(CALL)
            self._enter("call", rest)
            yield from _text("content", before.rstrip())
            return
        certain = len(self._held) if is_last or not self._has_tools else _certain(self._held, CALL)
        shown = self._held[:certain]
        if self._has_tools and not is_last:
            shown = shown.rstrip()  # white space before a call belongs to it
        self._held = self._held[len(shown) :]
        yield from _text("content", shown)

    def _call(self, is_last: bool) -> Iterator[Part]:
        inner, end, rest = self._held.partition(CALL_END)
        if not end and not is_last:
            return
        self._enter("answer", rest)
        call = _parse_call(inner) if end else None
        if call is None:
            yield Part("content", f"{CALL}{inner}{end}")
        else:
            self.num_calls += 1
            yield Part("call", json.dumps(call["arguments"], ensure_ascii=False), call["name"])

    def _enter(self, state: str, rest: str) -> None:
        self._state, self._held, self._skips_space = state, rest, True

    def _skip_space(self) -> None:
        if self._skips_space:
            self._held = self._held.lstrip()
            self._skips_space = not self._held


def _text(kind: str, text: str) -> Iterator[Part]:
    if text:
        yield Part(kind, text)


def _certain(text: str, tag: str) -> int:
    """Return how much of `text` cannot be the beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return len(text) - length
    return len(text)


def _parse_call(text: str) -> dict[str, Any] | None:
    try:
        call = json.loads(text)
    except ValueError:
        return None
    if isinstance(call, dict) and isinstance(call.get("name"), str):
        return {"name": call["name"], "arguments": call.get("arguments", {})}
    return None
