"""Text that people give, as strict UTF-8."""

import json

from qwen3_model.errors import FormatError


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can hold a text: no half of a character, no byte that was none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def to_json(value: object) -> str:
    """Return a value as one line of JSON that UTF-8 can hold: half a character stays escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_utf8(text) else json.dumps(value)


def decode_utf8(raw: bytes, where: str) -> str:
    """Decode `raw`, which stands at `where`.

    Raises:
        FormatError: It is no UTF-8; the first such byte is named.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{where}: byte {error.start + 1} (0x{raw[error.start]:02x}) is no UTF-8; save the file as UTF-8"
        ) from None
