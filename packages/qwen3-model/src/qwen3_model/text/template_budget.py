"""What one rendering of a chat template may use: steps, letters and processor time."""

import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import NoneType
from typing import TypeVar

from jinja2 import Undefined
from jinja2.utils import Namespace

from qwen3_model.errors import FormatError

Value = TypeVar("Value")

MOST_STEPS = 2_000_000
"""Turns of loops, calls and filters in all."""
LONGEST_VALUE, TIMES_GIVEN = 2**24, 4
"""Letters of the output and of any value on the way to it: 16 million, and four times what is given."""
MOST_LETTERS = 16
"""Times as many letters may all values together have that are made on the way."""
MOST_SECONDS = 10.0
"""Limit of processor time in seconds, looked at every few steps and after each large value."""
MOST_BITS = 4096
"""Limit of the bits of an integer."""
WIDEST = 10_000
"""Limit of widths, precisions and counts that make a text or list longer."""

STEPS_PER_LOOK = 64 - 1
LETTERS_PER_LOOK = 100_000
PLAIN = (bool, float, NoneType, Undefined)
CONTAINERS: tuple[type[Collection[object]], ...] = (
    dict,
    list,
    tuple,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)


class TemplateLimitError(FormatError):
    """A chat template wants more than a rendering may use."""


Size = tuple[int, int, int]
"""Letters that a value has as text, at least; entries; and how deep they are nested."""


class Budget:
    """Counts what one rendering uses, and raises TemplateLimitError when that is too much."""

    def __init__(self) -> None:
        self._steps = self._letters = self._letters_seen = 0
        self._longest = sys.maxsize
        self._until_s = time.thread_time() + MOST_SECONDS
        # The values are kept, so that no other one gets the id of one that is measured.
        self._sizes: dict[int, tuple[object, Size]] = {}

    def measure_input(self, values: Mapping[str, object]) -> None:
        """Measure the template's input: the longer that is, the longer its values may be."""
        self._longest = LONGEST_VALUE + TIMES_GIVEN * sum(map(self.letters, values.values()))

    def step(self, letters: int = 0) -> None:
        """Count one step that makes `letters`."""
        self._steps += 1
        self._letters += letters
        if self._steps & STEPS_PER_LOOK == 0 or self._letters - self._letters_seen > LETTERS_PER_LOOK:
            self._look()

    def _look(self) -> None:
        self._letters_seen = self._letters
        if self._steps > MOST_STEPS:
            raise TemplateLimitError(f"it takes more than {MOST_STEPS:,} steps")
        if self._letters > MOST_LETTERS * self._longest:
            raise TemplateLimitError(
                f"it makes texts of more than {MOST_LETTERS * self._longest:,} letters in all"
            )
        if time.thread_time() > self._until_s:
            raise TemplateLimitError(f"it takes more than {MOST_SECONDS:.0f} s")

    def each(self, values: Iterable[Value], letters: int = 0) -> Iterator[Value]:
        """Yield `values`, one step each, of which each makes `letters`."""
        for value in values:
            self.step(letters)
            yield value

    def take(self, value: Value) -> Value:
        """Count a value that was made; return it."""
        self.step(self.letters(value))
        return value

    def letters(self, value: object) -> int:
        """Return the letters of a value."""
        if type(value) is str and len(value) <= LONGEST_VALUE:
            return len(value)
        return self.size(value)[0]

    def require(self, letters: int) -> None:
        """Raise when a value of `letters` would be too long, before it is made."""
        if letters > self._longest:
            raise TemplateLimitError(f"it makes a value of more than {self._longest:,} letters")

    def size(self, value: object) -> Size:
        """Return the size of a value; one that appears twice in it counts twice, as in its text."""
        if isinstance(value, str):
            found = len(value), 1, 0
        elif isinstance(value, PLAIN):
            return 8, 1, 0
        elif isinstance(value, int):
            if value.bit_length() > MOST_BITS:
                raise TemplateLimitError(f"it computes an integer of more than {MOST_BITS} bits")
            return value.bit_length() // 3 + 2, 1, 0
        elif isinstance(value, CONTAINERS):
            found = self._inner_size(value)
        elif isinstance(value, range):
            found = 8 * len(value), len(value), 1
        elif isinstance(value, Namespace):
            raise TemplateLimitError("it prints a namespace, or puts one into a value")
        else:  # a macro, a loop, a filter's iterator: no text of its own
            return 64, 1, 0
        self.require(found[0])
        return found

    def _inner_size(self, value: Iterable[object]) -> Size:
        if (known := self._sizes.get(id(value))) is not None:
            return known[1]
        entries = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        letters, number, depth = 2, 1, 0
        for entry in entries:
            if type(entry) is str:
                letters, number = letters + len(entry) + 2, number + 1
                continue
            size = self.size(entry)
            letters += size[0] + 2
            number += size[1]
            depth = max(depth, size[2])
            self.require(letters)
        self.require(letters)
        found = letters, number, depth + 1
        self._sizes[id(value)] = value, found
        return found
