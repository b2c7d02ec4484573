"""The one reader of small files with a JSON object: a config, a manifest, an index."""

import json
from pathlib import Path

from qwen3_model.command.small_files import SETTINGS_BYTES, read_small_text
from qwen3_model.errors import FormatError, Qwen3Error


def read_json(
    path: Path,
    most_bytes: int = SETTINGS_BYTES,
    *,
    error: type[Qwen3Error] = FormatError,
    remedy: str = "",
) -> dict[str, object]:
    """Return the JSON object in a file.

    Args:
        path: The file, UTF-8.
        most_bytes: A larger file is refused; see `small_files` for limits.
        error: What is raised where the file has no JSON object.
        remedy: What to do then, such as `preprocess again`; empty where nothing but the fault can be said.

    Raises:
        Qwen3Error: `error`, or FormatError for a file that is too large or a pointer of Git LFS.
        OSError: The file cannot be read.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        value = json.loads(read_small_text(path, most_bytes))
    except (ValueError, RecursionError) as fault:
        raise error(f"{path} is not JSON: {fault}{end}") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds no JSON object{end}")
    return value


def fault_of_line(error: ValueError | RecursionError) -> str:
    """Return why a line is not JSON, with the character of the line, from 1, where that shows."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg} at character {error.pos + 1}"
