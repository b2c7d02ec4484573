"""The JSON object that a small file of a checkpoint or adapter holds."""

import json
from pathlib import Path
from typing import Any

from qwen3_model.command.small_files import INDEX_BYTES, read_small_text
from qwen3_model.errors import FormatError


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise FormatError where it is none."""
    try:
        value = json.loads(read_small_text(path, INDEX_BYTES))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds no JSON object")
    return value
