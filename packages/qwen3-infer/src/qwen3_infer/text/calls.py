"""Calls of tools as a model writes them after `<tool_call>`: where a call ends, and whether it is one.

docs/serving.md has the grammar.
"""

import json
import math
import re
from dataclasses import dataclass

from qwen3_infer.text.utf8 import is_utf8, to_json

MOST_NESTED = 256
"""Levels of objects and lists in a call; a deeper one stays text."""
NO_JSON = -1

_BEFORE_VALUE = re.compile(r"\s*")
_INSIDE_STRING = re.compile(r'(?:[^"\\]+|\\.)*', re.DOTALL)
_OUTSIDE_STRING = re.compile(r"[\s0-9A-Za-z.,:+-]*")


@dataclass(frozen=True, slots=True)
class Call:
    """A function that the model calls."""

    name: str
    """The function's."""
    arguments: str
    """A JSON object as text, which any encoding can carry."""


class ValueEnd:
    """Finds where a JSON object or list ends, in a text that grows; reads each character once.

    A tag inside of a string ends nothing. Whether it is JSON in all else, `json` decides.
    """

    def __init__(self) -> None:
        self._at = self._depth = 0
        self._in_string = False
        self._found: int | None = None

    def find(self, text: str) -> int | None:
        """Return where the value ends, None while it has not, `NO_JSON` when it can be none."""
        while self._found is None and self._at < len(text):
            if self._in_string:
                self._at = _match_end(_INSIDE_STRING, text, self._at)
                if self._at == len(text) or text[self._at] == "\\":  # what is escaped has not come yet
                    return None
                self._in_string = False
            else:
                rule = _OUTSIDE_STRING if self._depth else _BEFORE_VALUE
                self._at = _match_end(rule, text, self._at)
                if self._at == len(text):
                    return None
                if not self._step(text[self._at]):
                    self._found = NO_JSON
                elif self._depth == 0:
                    self._found = self._at + 1
            self._at += 1
        return self._found

    def _step(self, letter: str) -> bool:
        """Take in a letter outside of strings; return whether it may stand there."""
        if letter == '"' and self._depth:
            self._in_string = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]" and self._depth:
            self._depth -= 1
        else:
            return False
        return self._depth <= MOST_NESTED


def _match_end(rule: re.Pattern[str], text: str, at: int) -> int:
    found = rule.match(text, at)
    assert found is not None  # both rules match nothing, too
    return found.end()


def parse_calls(text: str) -> tuple[Call, ...]:
    """Return the calls that a JSON value holds, none when it is no call; raises nothing.

    An object is one call, a list of objects several. A call has a `name`, and `arguments` or `parameters`:
    an object, the text of one, or null or nothing for no arguments. Line breaks may stand in strings.
    """
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse, parse_float=_finite)
        calls = value if isinstance(value, list) else [value]
        return tuple(_parse_call(call) for call in calls)
    except (ValueError, RecursionError):
        return ()


def _parse_call(call: object) -> Call:
    if not isinstance(call, dict):
        raise ValueError("a call is an object")  # noqa: TRY004
    name = call.get("name")
    if not isinstance(name, str) or not name.strip() or not is_utf8(name):
        raise ValueError("a call has a name")
    named = [call[key] for key in ("arguments", "parameters") if call.get(key) is not None]
    arguments = named[0] if named else {}
    if isinstance(arguments, str):
        if arguments.strip():
            arguments = json.loads(arguments, strict=False, parse_constant=_refuse, parse_float=_finite)
        arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise ValueError("arguments are an object")  # noqa: TRY004
    return Call(name, to_json(arguments))


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
