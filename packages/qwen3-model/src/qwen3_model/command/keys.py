"""The keys of a YAML: their values, their spelling on a command line, and what an unknown one may mean.

A schema is a nested dict: a `Key` at a leaf, a dict for a section, a one-element list for a list of sections.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from qwen3_model.command.spellings import OTHER_NAMES
from qwen3_model.errors import OverrideError, UsageError


@dataclass(frozen=True, slots=True)
class Key:
    """What a YAML key may hold and whether it does anything here."""

    types: tuple[type, ...] = ()
    """Allowed types, empty for any; an int passes for a float, a bool never for a number, nor do nan, inf."""
    choices: tuple[object, ...] | range = ()
    """Allowed values, or the range of whole numbers; empty for any."""
    effect: str = "used"
    """"used", "ascend" (has an effect on Ascend only) or "none" (accepted for compatibility, named once)."""
    spelled: Callable[[str], str | None] | None = None
    """Returns the value that a text means, None for a text without meaning; "auto" leaves the key out."""


Schema: TypeAlias = Mapping[str, "Key | Schema | list[Schema]"]


def parse_dotted(
    arguments: Sequence[str], schema: Schema, aliases: Mapping[str, str] = MappingProxyType({})
) -> list[tuple[str, str]]:
    """Split `--a.b value` and `--a.b=value` into pairs; hyphens in a key count as underscores.

    A key that is true or false may also be written `--a.b` and `--no-a.b`.

    Args:
        arguments: What follows the command's own options.
        schema: The keys that there are.
        aliases: Short names of keys.

    Raises:
        UsageError: An argument is no flag, or a flag has no value.
    """
    pairs = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or len(argument) == 2:
            raise UsageError(f"unexpected argument {argument!r}; overrides are written --key.key value")
        written, equals, value = argument[2:].partition("=")
        key = written.replace("-", "_")
        key = aliases.get(key, key)
        opposite = aliases.get(key.removeprefix("no_"), key.removeprefix("no_"))
        if key not in schema and opposite != key and _is_switch(opposite, schema) and not equals:
            pairs.append((opposite, "False"))
            continue
        if not equals:
            if rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            elif _is_switch(key, schema):
                value = "True"
            elif key.partition(".")[0] not in schema:
                raise unknown_key(key, schema)
            else:
                raise OverrideError(f"--{written} needs a value", written)
        pairs.append((key, value))
    return pairs


def _is_switch(dotted: str, schema: Schema) -> bool:
    """Return whether a key is true or false and nothing else."""
    rule: Key | Schema | list[Schema] | None = schema
    for part in dotted.split("."):
        if isinstance(rule, list):
            rule = rule[0]
        elif isinstance(rule, Mapping):
            rule = rule.get(part)
    return isinstance(rule, Key) and rule.types == (bool,)


def unknown_key(dotted: str, schema: Schema) -> OverrideError:
    """Return the error for an argument whose key the schema lacks."""
    top = dotted.partition(".")[0]
    if top == "options":  # mindformers' way to give several
        return OverrideError(f"--{dotted}: write each key on its own, as --seed 1 or --a.b 2", dotted)
    return OverrideError(f"--{dotted}: unknown key {top}", dotted, keys_meant(dotted, schema))


def hint(key: str, schema: Schema) -> str:
    """Return ` (did you mean X?)` of the key of one section that `key` is most like, or nothing."""
    close = difflib.get_close_matches(key, list(schema), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def keys_meant(dotted: str, schema: Schema) -> tuple[str, ...]:
    """Return the dotted keys that an unknown one may mean: of its own name further down, or most like it."""
    dotted = OTHER_NAMES.get(dotted, dotted)
    paths = list(_paths(schema, ""))
    same = [path for path in paths if f".{path}".endswith(f".{dotted}")]
    if same:
        return tuple(sorted(same, key=len)[:2])
    if close := difflib.get_close_matches(dotted, paths, n=1):
        return tuple(close)
    leaves = [path.rpartition(".")[2] for path in paths]
    close = difflib.get_close_matches(dotted, leaves, n=1, cutoff=0.75)
    return (paths[leaves.index(close[0])],) if close else ()


def _paths(schema: Schema, prefix: str) -> Iterator[str]:
    for key, rule in schema.items():
        yield f"{prefix}{key}"
        if isinstance(rule, list):
            yield from _paths(rule[0], f"{prefix}{key}.0.")
        elif not isinstance(rule, Key):
            yield from _paths(rule, f"{prefix}{key}.")
