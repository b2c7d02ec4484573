"""How long the texts are that filters, methods and operators of a template would make, before they do."""

import re
from collections.abc import Callable, Iterable

from qwen3_model.text.template_budget import MOST_BITS, WIDEST, Budget, TemplateLimitError

DIGITS = re.compile(r"\d+")
NESTED_FIELD = re.compile(r"\{[^{}]*\{")
DEEPEST_INDENT = 16

TEXT_METHODS = frozenset({
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum",
    "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle",
    "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
    "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "swapcase", "title", "upper", "zfill",
})  # fmt: skip
"""Methods of texts that a template may call."""
FILTERS = frozenset({
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape",
    "first", "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse",
    "round", "safe", "select", "selectattr", "slice", "sort", "string", "striptags", "sum", "title",
    "tojson", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
})  # fmt: skip
"""jinja2's filters that a template may use."""
LAZY = frozenset({"list", "map", "reject", "rejectattr", "select", "selectattr", "first"})
"""Filters that take an iterator as it is."""


def check_percent(budget: Budget, form: str, values: object) -> None:
    """Check `form % values`."""
    if "*" in form:
        raise TemplateLimitError("it takes the width of a number from a value")
    widths = sum(_width(found[0]) for found in DIGITS.finditer(form))
    budget.require(len(form) + widths + form.count("%") * budget.letters(values))


def check_format(budget: Budget, form: str, values: Iterable[object]) -> None:
    """Check `form.format(*values)`."""
    if NESTED_FIELD.search(form):
        raise TemplateLimitError("it takes the width of a number from a value")
    widths = sum(_width(found[0]) for found in DIGITS.finditer(form))
    longest = max((budget.letters(value) for value in values), default=0)
    budget.require(len(form) + widths + form.count("{") * longest)


def check_join(budget: Budget, separator: object, entries: object) -> None:
    """Check the texts of `entries` with `separator` between them."""
    letters, number, _ = budget.size(entries)
    budget.require(letters + number * budget.letters(separator))


def check_replace(budget: Budget, text: object, old: object, new: object) -> None:
    """Check `text` with each `old` replaced by `new`."""
    found = text.count(old) if isinstance(text, str) and isinstance(old, str) else budget.letters(text)
    budget.require(budget.letters(text) + found * budget.letters(new))


def check_width(value: object, most: int = WIDEST) -> None:
    """Check a number that makes a text or list longer."""
    if isinstance(value, int) and abs(value) > most:
        raise TemplateLimitError(f"it asks for a width of more than {most:,}")


def _check_indent(budget: Budget, text: object, width: object = 4, *_: object, **__: object) -> None:
    check_width(width)
    letters = width if isinstance(width, int) else budget.letters(width)
    lines = len(text.splitlines()) if isinstance(text, str) else 1
    budget.require(budget.letters(text) + lines * max(letters, 0))


def _check_json(budget: Budget, value: object, *_: object, indent: object = None, **__: object) -> None:
    if indent is None:
        return
    check_width(indent, DEEPEST_INDENT)
    letters = indent if isinstance(indent, int) else budget.letters(indent)
    whole, number, depth = budget.size(value)
    budget.require(whole + number * (depth + 1) * max(letters, 0))


def _check_sum(_: Budget, values: object, attribute: object = None, start: object = 0) -> None:
    if not isinstance(start, int | float):
        raise TemplateLimitError("it sums up what are no numbers")


def _check_widths(_: Budget, value: object, *given: object, **named: object) -> None:
    for entry in (*given, *named.values()):
        check_width(entry)


FILTER_CHECKS: dict[str, Callable[..., None]] = {
    "batch": _check_widths,
    "center": _check_widths,
    "format": lambda budget, form, *given, **named: check_percent(budget, str(form), given or named),
    "indent": _check_indent,
    "join": lambda budget, entries, d="", *_, **__: check_join(budget, d, entries),
    "replace": lambda budget, text, old, new, *_, **__: check_replace(budget, text, old, new),
    "round": lambda _, value, precision=0, *__: check_width(precision, 100),
    "slice": _check_widths,
    "sum": _check_sum,
    "tojson": _check_json,
}
"""Checks of filters whose result may be much longer than what they are given."""


def check_method(budget: Budget, text: str, name: str, given: tuple[object, ...]) -> None:
    """Check a method of a text."""
    if name == "join" and given:
        check_join(budget, text, given[0])
    elif name == "replace" and len(given) > 1:
        check_replace(budget, text, given[0], given[1])
    elif name in {"center", "ljust", "rjust", "zfill"} and given:
        check_width(given[0])


def check_operator(budget: Budget, operator: str, left: object, right: object) -> None:
    """Check `left operator right`."""
    if operator == "+":
        if not (_is_number(left) and _is_number(right)):
            budget.require(budget.letters(left) + budget.letters(right))
    elif operator == "*":
        _check_product(budget, left, right)
    elif operator == "%":
        if isinstance(left, str):
            check_percent(budget, left, right)
    elif isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MOST_BITS:
        raise TemplateLimitError(f"it computes an integer of more than {MOST_BITS} bits")


def _check_product(budget: Budget, left: object, right: object) -> None:
    if _is_number(left) and _is_number(right):
        return  # of at most twice the bits; the result is measured
    times, value = (left, right) if isinstance(left, int) else (right, left)
    if isinstance(times, int):
        budget.require(budget.letters(value) * max(times, 0))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _width(digits: str) -> int:
    width = int(digits) if len(digits) < 8 else WIDEST + 1
    check_width(width)
    return width
