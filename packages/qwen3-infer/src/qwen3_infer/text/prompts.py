"""What to complete: a text, a `.txt` with one prompt a line, or a `.jsonl` with one request a line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3_infer.text.utf8 import decode_utf8
from qwen3_model.command.json_file import fault_of_line
from qwen3_model.command.small_files import INPUT_BYTES, read_small
from qwen3_model.errors import FormatError, UsageError

FILE_SUFFIXES = (".txt", ".jsonl")
JSON_KEYS = ("id", "prompt", "messages", "tools")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One request as the user wrote it: a text or a conversation."""

    text: str | None = None
    """What to continue, or with a chat template what the user says."""
    messages: tuple[Mapping[str, object], ...] = ()
    """OpenAI messages, instead of `text`."""
    tools: tuple[Mapping[str, object], ...] = ()
    """JSON schemas of functions that the model may call."""
    id: str | int | None = None
    """Passed through to the results."""
    where: str = "the prompt"
    """Names the prompt in error messages."""


def read_prompts(data: Sequence[str]) -> list[Prompt]:
    """Read every value of `--input`: names of .txt or .jsonl files, or texts.

    In a text and in a .txt file, backslash and n stand for a new line, as in mindformers.

    Raises:
        UsageError: There is no prompt, or a text is empty.
        FormatError: A file is missing, is no UTF-8, has a blank line, or a line is no request.
    """
    prompts: list[Prompt] = []
    for number, value in enumerate(data):
        if value.lower().endswith(FILE_SUFFIXES) and "\n" not in value:
            prompts.extend(_read_file(Path(value)))
        elif not value.strip():
            raise UsageError("--input is empty; give a text, a .txt file or a .jsonl file")
        else:
            where = "the prompt" if len(data) == 1 else f"prompt {number + 1}"
            prompts.append(Prompt(text=value.replace("\\n", "\n"), where=where))
    if not prompts:
        raise UsageError("there is no prompt; give --input a text, a .txt file or a .jsonl file")
    return prompts


def _read_file(path: Path) -> Iterator[Prompt]:
    if not path.exists():
        raise FormatError(f"{path} does not exist; --input takes a text or an existing file")
    if path.is_dir():
        raise FormatError(f"{path} is a folder; --input takes a text or a file")
    lines = read_small(path, INPUT_BYTES).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] in (b"", b"\r"):
        lines.pop()
    if not lines:
        raise FormatError(f"{path} is empty; write one prompt a line")
    for number, raw in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        line = decode_utf8(raw.removesuffix(b"\r"), where)
        if not line.strip():
            raise FormatError(f"{where} is blank; every line is a prompt, so remove it")
        if path.suffix.lower() == ".jsonl":
            yield _parse_request(line, where)
        else:
            yield Prompt(text=line.replace("\\n", "\n"), where=where)


def _parse_request(line: str, where: str) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} is not JSON: {fault_of_line(error)}") from None
    if not isinstance(record, dict):
        raise FormatError(f'{where} must be an object such as {{"prompt": "..."}}')
    if unknown := sorted(record.keys() - set(JSON_KEYS)):
        raise FormatError(f"{where} has unknown keys {', '.join(unknown)}; known are {', '.join(JSON_KEYS)}")
    if ("prompt" in record) == ("messages" in record):
        raise FormatError(f"{where} must have either prompt or messages")
    if "prompt" in record and (not isinstance(record["prompt"], str) or not record["prompt"].strip()):
        raise FormatError(f"{where}: prompt must be a text that is not blank")
    if not isinstance(record.get("id", 0), str | int):
        raise FormatError(f"{where}: id must be a text or a whole number")
    return Prompt(
        text=record.get("prompt"),
        messages=_objects(record, "messages", where, required="role"),
        tools=_objects(record, "tools", where),
        id=record.get("id"),
        where=where,
    )


def _objects(
    record: Mapping[str, object], key: str, where: str, required: str | None = None
) -> tuple[Mapping[str, object], ...]:
    values = record.get(key)
    if values is None and key not in record:
        return ()
    if not isinstance(values, list) or not values or not all(isinstance(value, dict) for value in values):
        raise FormatError(f"{where}: {key} must be a list of at least one object")
    if required and not all(required in value for value in values):
        raise FormatError(f"{where}: each of {key} needs a {required}")
    return tuple(values)
