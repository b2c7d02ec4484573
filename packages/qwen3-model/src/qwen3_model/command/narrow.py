"""Narrow a value of a YAML, a JSON file or a request to the type that its reader needs.

Each function returns the value itself, of the same object, or raises. Where a schema has checked the value
before, nothing is raised; where nobody has, the reader catches `FormatError` and adds the file and the key.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeGuard, TypeVar

from qwen3_model.errors import FormatError

T = TypeVar("T")


def as_text(value: object) -> str:
    """Return `value`, a str; raise FormatError for another type."""
    if isinstance(value, str):
        return value
    raise _wrong(value, "a text")


def as_flag(value: object) -> bool:
    """Return `value`, a bool; raise FormatError for another type."""
    if isinstance(value, bool):
        return value
    raise _wrong(value, "true or false")


def as_int(value: object) -> int:
    """Return `value`, an int that is no bool; raise FormatError for another type."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _wrong(value, "a whole number")


def as_number(value: object) -> float:
    """Return `value`, an int or a float, unchanged; raise FormatError for another type, also for a bool."""
    if is_number(value):
        return value
    raise _wrong(value, "a number")


def as_list(value: object) -> Sequence[object]:
    """Return `value`, a list or a tuple; raise FormatError for another type."""
    if isinstance(value, list | tuple):
        return value
    raise _wrong(value, "a list")


def as_section(value: object) -> Mapping[str, object]:
    """Return `value`, a dict whose keys are texts; raise FormatError for another type."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    raise _wrong(value, "a section with keys")


def as_texts(value: object) -> Sequence[str]:
    """Return the texts of a list; raise FormatError for another type."""
    return each_as(as_text, value)


def as_ints(value: object) -> Sequence[int]:
    """Return the whole numbers of a list; raise FormatError for another type."""
    return each_as(as_int, value)


def as_sections(value: object) -> Sequence[Mapping[str, object]]:
    """Return the sections of a list; raise FormatError for another type."""
    return each_as(as_section, value)


def each_as(narrow: Callable[[object], T], value: object) -> list[T]:
    """Return the values of a list, each as `narrow` returns it; raise FormatError for another type."""
    return [narrow(item) for item in as_list(value)]


def optional(narrow: Callable[[object], T], value: object) -> T | None:
    """Return None for None, otherwise `value` as `narrow` returns it."""
    return None if value is None else narrow(value)


def at_key(
    section: Mapping[str, object], key: str, narrow: Callable[[object], T], default: T | None = None
) -> T:
    """Return `section[key]` as `narrow` returns it, or `default` where the key is absent.

    Raises:
        FormatError: With the key: `narrow` raises, or the key is absent and there is no default.
    """
    if key not in section:
        if default is None:
            raise FormatError(f"{key} is missing")
        return default
    try:
        return narrow(section[key])
    except FormatError as error:
        raise FormatError(f"{key}: {error}") from None


def is_number(value: object) -> TypeGuard[float]:
    """Return whether `value` is an int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: float) -> bool:
    """Return whether a float can hold `value`: it is not NaN, not infinite, no int beyond all floats."""
    return abs(value) <= sys.float_info.max


def is_above_zero(value: object) -> TypeGuard[float]:
    """Return whether `value` is a number above 0 that a float can hold."""
    return is_number(value) and value > 0 and is_finite(value)


def build(make: Callable[..., T], values: Mapping[str, object]) -> T:
    """Return what `make` returns for `values` as keyword arguments, of the types that its caller states."""
    return make(**values)


def _wrong(value: object, expected: str) -> FormatError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return FormatError(f"{shown} is not {expected}")
