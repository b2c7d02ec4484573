"""Runs described by one YAML file in mindformers' keys, with any key overridden on the command line.

A key without a value (`key:`, `key: null`, `--key null`) counts as left out.
"""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from qwen3_model.command.keys import Key, Schema, hint, keys_meant, unknown_key
from qwen3_model.command.narrow import as_section, as_sections, is_finite, is_number
from qwen3_model.command.small_files import YAML_BYTES, read_small_text
from qwen3_model.command.yaml_loader import parse_yaml
from qwen3_model.errors import ConfigError, OverrideError, Qwen3Error, UsageError

TYPE_WORDS: Mapping[type, str] = {dict: "a section with keys", bool: "True or False"}
"""What a type is called where its own name would not say it."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A checked run configuration."""

    values: dict[str, object]
    """The nested YAML values after the overrides, none of them None."""
    notes: tuple[str, ...]
    """One sentence for each kind of key that has no effect here."""

    def get(self, dotted: str, default: object = None) -> object:
        """Return the value at `a.b.c`, or `default` when a part is absent or the value is None."""
        value: object = self.values
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def section(self, dotted: str) -> Mapping[str, object]:
        """Return the section at `a.b.c`; an empty one when it is absent."""
        return as_section(self.get(dotted, {}))

    def sections(self, dotted: str) -> Sequence[Mapping[str, object]]:
        """Return the list of sections at `a.b.c`; an empty one when it is absent."""
        return as_sections(self.get(dotted, []))

    def to_yaml(self) -> str:
        """Return YAML that reads back as the same configuration."""
        return yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True)


def load_run_config(path: Path, overrides: Sequence[tuple[str, str]], schema: Schema) -> RunConfig:
    """Read `path`, apply dotted `overrides` in order and check every key against `schema`.

    Raises:
        UsageError: An override names a key that the schema lacks.
        ConfigError: The file cannot be read or has unknown keys or wrong values, all of which are named.
    """
    try:
        text = read_small_text(path, YAML_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give a YAML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from None
    return parse_run_config(text, overrides, schema, where=str(path))


def parse_run_config(
    text: str, overrides: Sequence[tuple[str, str]], schema: Schema, *, where: str
) -> RunConfig:
    """Do what `load_run_config` does for the `text` of a file called `where`."""
    values = parse_yaml(text, where)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must hold keys and values, found {type(values).__name__}")
    _respell(values, schema)
    if problems := list(_problems(values, schema, "")):
        raise ConfigError(f"{where}: {'; '.join(problems)}")
    for key, value in overrides:
        _override(values, key, _parse_override(key, value))
        _respell(values, schema)
        _check_override(values, key, schema)
    values = _without_nulls(values, schema)
    return RunConfig(values, tuple(_notes(values, schema)))


def peek_values(path: Path) -> object:
    """Return what a YAML file holds before any of its keys is checked: most often a dict, None for nothing.

    A file that cannot be read holds an empty dict here; `load_run_config` says what is wrong with it.
    """
    if not path.is_file():
        return {}
    try:
        return parse_yaml(read_small_text(path, YAML_BYTES), str(path))
    except (Qwen3Error, UnicodeDecodeError):
        return {}


def read_section(value: object, schema: Schema, name: str) -> dict[str, object]:
    """Return the section at a key that the schema of its YAML leaves open, checked against one of its own.

    Raises:
        ConfigError: It is no section, or has unknown keys or wrong values, all of which are named.
    """
    if problems := list(_problems({name: value}, {name: schema}, "")):
        raise ConfigError("; ".join(problems))
    return _without_nulls(as_section(value), schema)


def _parse_override(key: str, value: str) -> object:
    try:
        return parse_yaml(value, f"--{key}")
    except ConfigError as error:
        raise UsageError(f"{error}; quote a text that looks like YAML, as --{key} '\"...\"'") from None


def _respell(values: dict[str, object], schema: Schema) -> None:
    """Put one spelling in place of the others of a value, such as bfloat16 of bf16."""
    for key, value in values.items():
        rule = schema.get(key) if isinstance(key, str) else None
        if isinstance(rule, Key):
            meant = rule.spelled(value) if rule.spelled and isinstance(value, str) else None
            if meant is not None:
                values[key] = None if meant == "auto" else meant
        elif isinstance(rule, Mapping) and isinstance(value, dict):
            _respell(value, rule)


def _without_nulls(values: Mapping[str, object], schema: Schema) -> dict[str, object]:
    kept: dict[str, object] = {}
    for key, value in values.items():
        rule = schema[key]
        if value is None:
            continue
        if isinstance(rule, list):
            kept[key] = [_without_nulls(item, rule[0]) for item in as_sections(value)]
        else:
            kept[key] = value if isinstance(rule, Key) else _without_nulls(as_section(value), rule)
    return kept


def _override(values: dict[str, object], dotted: str, new: object) -> None:
    parts = dotted.split(".")
    section: dict[str, object] | list[object] = values
    for index, part in enumerate(parts[:-1]):
        if isinstance(section, list):
            inner = section[_list_index(section, part, dotted)]
        else:
            if section.get(part) is None:
                section[part] = {}
            inner = section[part]
        if not isinstance(inner, dict | list):
            raise UsageError(f"--{dotted}: {'.'.join(parts[: index + 1])} is {inner!r}, not a section")
        section = inner
    if isinstance(section, list):
        section[_list_index(section, parts[-1], dotted)] = new
    else:
        section[parts[-1]] = new


def _list_index(items: list[object], part: str, dotted: str) -> int:
    if not part.isdecimal() or not part.isascii() or int(part) >= len(items):
        raise UsageError(f"--{dotted}: {part!r} is no index of a list of {len(items)}; count from 0")
    return int(part)


def _check_override(values: dict[str, object], dotted: str, schema: Schema) -> None:
    top = dotted.split(".")[0]
    if top not in schema:
        raise unknown_key(dotted, schema)
    problems = list(_problems({top: values[top]}, schema, ""))
    if problems == [f"unknown key {dotted}"]:
        raise OverrideError(
            f"--{dotted}: {problems[0]}", dotted, keys_meant(dotted.rpartition(".")[2], schema)
        )
    if problems and isinstance(schema[top], Mapping) and dotted == top:
        raise OverrideError(f"--{dotted}: {'; '.join(problems)}", dotted)
    if problems:
        raise UsageError(f"--{dotted}: {'; '.join(problems)}")


def _problems(values: Mapping[str, object], schema: Schema, prefix: str) -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in schema:
            yield f"unknown key {name}{hint(str(key), schema)}"
            continue
        rule = schema[key]
        if isinstance(rule, Key):
            yield from _value_problems(name, value, rule)
        elif isinstance(rule, list):
            yield from _list_problems(name, value, rule[0])
        elif value is not None:
            if isinstance(value, dict):
                yield from _problems(value, rule, f"{name}.")
            else:
                yield f"{name}={value!r} must be a section with keys"


def _list_problems(name: str, value: object, item_schema: Schema) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        yield f"{name}={value!r} must be a list of sections"
        return
    for index, item in enumerate(value):
        yield from _problems(item, item_schema, f"{name}.{index}.")


def _value_problems(name: str, value: object, rule: Key) -> Iterator[str]:
    if value is None:
        return
    if rule.types and not _has_type(value, rule.types):
        expected = " or ".join(TYPE_WORDS.get(kind, kind.__name__) for kind in rule.types)
        yield f"{name}={value!r} must be {expected}"
    elif float in rule.types and is_number(value) and not is_finite(value):
        yield f"{name}={reprlib.repr(value)} must be a finite number"
    elif isinstance(rule.choices, range) and value not in rule.choices:
        yield f"{name}={value} must be from {rule.choices[0]} to {rule.choices[-1]}"
    elif rule.choices and value not in rule.choices:
        yield f"{name}={value!r} is none of {', '.join(map(str, rule.choices))}"


def _has_type(value: object, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (isinstance(value, int) and float in types)


def _notes(values: Mapping[str, object], schema: Schema) -> Iterator[str]:
    found: dict[str, list[str]] = {"none": [], "ascend": []}
    _collect_effects(values, schema, "", found)
    if found["none"]:
        yield f"accepted without effect here: {', '.join(sorted(set(found['none'])))}"
    if found["ascend"]:
        yield f"with effect on Ascend only: {', '.join(sorted(set(found['ascend'])))}"


def _collect_effects(
    values: Mapping[str, object], schema: Schema, prefix: str, found: dict[str, list[str]]
) -> None:
    for key, value in values.items():
        rule = schema[key]
        if isinstance(rule, Key):
            if rule.effect in found:
                found[rule.effect].append(f"{prefix}{key}")
        elif isinstance(rule, list):
            for item in as_sections(value):
                _collect_effects(item, rule[0], f"{prefix}{key}.", found)
        else:
            _collect_effects(as_section(value), rule, f"{prefix}{key}.", found)
