"""An assistant's text as it comes, taken apart into thought, answer and calls of tools.

docs/serving.md has the grammar.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from qwen3_infer.text.calls import NO_JSON, ValueEnd, parse_calls

THINK, THOUGHT_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
# Models close a bracket too many now and then.
_AFTER_VALUE = "}] \t\r\n"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one kind."""

    kind: str
    """"reasoning", "content" or "call"."""
    text: str
    """The piece; for a call its arguments as JSON."""
    name: str = ""
    """Name of the function that is called; empty for other kinds."""


class ChatOutput:
    """Take apart one answer, piece by piece.

    A thought is what stands between `<think>` at the beginning and `</think>`, without the white space around
    it; an end without a beginning ends nothing. Text that may become a tag stays in the buffer.
    """

    def __init__(self, *, has_tools: bool, starts_in_thought: bool = False) -> None:
        self._has_tools = has_tools
        self._state = "start"
        self._starts_in_thought = starts_in_thought
        self._buffer = ""
        # Right after a tag white space belongs to neither side.
        self._skips_space = False
        self._value_end = ValueEnd()
        self._space = ""
        """Before the tag of what may be a call, to which it then belongs."""
        self.num_calls = 0
        """Calls found so far."""

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next belongs to a thought, as far as is certain."""
        return self._state == "thought" or (self._state == "start" and self._starts_in_thought)

    @property
    def has_begun(self) -> bool:
        """Whether it is certain if the answer begins with a thought."""
        return self._state != "start"

    def push(self, piece: str, *, is_last: bool = False) -> list[Part]:
        """Return the parts that are now certain."""
        self._buffer += piece
        parts: list[Part] = []
        state = None
        while state != (self._state, self._buffer):
            state = (self._state, self._buffer)
            parts += getattr(self, f"_{self._state}")(is_last)
        return parts

    def _start(self, is_last: bool) -> Iterator[Part]:
        text = self._buffer.lstrip()
        if text.startswith(THINK):
            self._enter("thought", text[len(THINK) :])
        elif is_last or not THINK.startswith(text):
            # A thought that the prompt began may begin with its tag once more, or without.
            if self._starts_in_thought:
                self._enter("thought", self._buffer)
            else:
                self._state = "answer"
        return iter(())

    def _thought(self, is_last: bool) -> Iterator[Part]:
        self._skip_space()
        thought, end, rest = self._buffer.partition(THOUGHT_END)
        if end:
            self._enter("answer", rest)
            yield from _text("reasoning", thought.rstrip())
        else:
            certain = len(self._buffer) if is_last else _count_certain(self._buffer, THOUGHT_END)
            shown = self._buffer[:certain].rstrip()
            self._buffer = self._buffer[len(shown) :]
            yield from _text("reasoning", shown)

    def _answer(self, is_last: bool) -> Iterator[Part]:
        self._skip_space()
        if self._has_tools and CALL in self._buffer:
            before, _, rest = self._buffer.partition(CALL)
            self._state, self._buffer, self._value_end = "call", rest, ValueEnd()
            text = before.rstrip()
            self._space = before[len(text) :]
            yield from _text("content", text)
            return
        certain = len(self._buffer) if is_last or not self._has_tools else _count_certain(self._buffer, CALL)
        shown = self._buffer[:certain]
        if self._has_tools and not is_last:
            shown = shown.rstrip()
        self._buffer = self._buffer[len(shown) :]
        yield from _text("content", shown)

    def _call(self, is_last: bool) -> Iterator[Part]:
        end = self._value_end.find(self._buffer)
        if end is None and not is_last:
            return
        if end is None or end == NO_JSON:
            yield from self._take_tag_as_text()
            return
        behind = self._buffer[end:].lstrip(_AFTER_VALUE)
        if not is_last and any(tag.startswith(behind) and tag != behind for tag in (CALL, CALL_END)):
            return
        is_closed = behind.startswith((CALL, CALL_END)) or (is_last and not behind)
        calls = parse_calls(self._buffer[:end]) if is_closed else ()
        if not calls:
            yield from self._take_tag_as_text()
            return
        self._enter("answer", behind.removeprefix(CALL_END))
        self.num_calls += len(calls)
        for call in calls:
            yield Part("call", call.arguments, call.name)

    def _take_tag_as_text(self) -> Iterator[Part]:
        """Let the tag be text; behind it another call may begin."""
        self._state, self._skips_space = "answer", False
        yield Part("content", self._space + CALL)

    def _enter(self, state: str, rest: str) -> None:
        self._state, self._buffer, self._skips_space = state, rest, True

    def _skip_space(self) -> None:
        if self._skips_space:
            self._buffer = self._buffer.lstrip()
            self._skips_space = not self._buffer


def split_answer(
    text: str, *, starts_in_thought: bool, has_tools: bool = False
) -> tuple[str, str, list[Part]]:
    """Return the thought, "" if there is none, the answer and the calls of a whole text.

    Without tools calls stay in the answer.
    """
    parts = ChatOutput(has_tools=has_tools, starts_in_thought=starts_in_thought).push(text, is_last=True)
    thought, answer = (
        "".join(part.text for part in parts if part.kind == kind) for kind in ("reasoning", "content")
    )
    return thought, answer, [part for part in parts if part.kind == "call"]


def _text(kind: str, text: str) -> Iterator[Part]:
    if text:
        yield Part(kind, text)


def _count_certain(text: str, tag: str) -> int:
    """Return how much of `text` cannot be the beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return len(text) - length
    return len(text)
