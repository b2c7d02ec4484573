"""Raw records to texts; what is wrong with a bad one is said in a sentence that names file and record."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import orjson

from qwen3_data.input.block import Block, Position
from qwen3_data.input.long_text import LONG_BYTES, LongText, load_long_record
from qwen3_data.input.shares import count_lines
from qwen3_model.command.json_file import fault_of_line
from qwen3_model.errors import FormatError

OnError = Literal["fail", "skip"]
NOTHING = re.compile(r"(?!)")
EXCERPT = 200
"""Bytes of a bad record that the rejects file quotes."""


Text = str | LongText | list[str]
"""A document; a list holds its sequences, none empty, as Megatron's tool takes them."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that was left out."""

    file: str
    record: int
    reason: str
    excerpt: str


@dataclass(slots=True)
class Batch:
    """The texts of one block."""

    texts: dict[str, list[Text]]
    """Texts of each key, in order; the same number for every key."""
    after: Position
    read_bytes: int
    rejects: list[Reject] = field(default_factory=list)
    num_special: dict[str, int] = field(default_factory=dict)
    """Texts of each key that spell a special token."""

    @property
    def num_documents(self) -> int:
        """Records that were kept."""
        return len(next(iter(self.texts.values())))


class BadRecordError(Exception):
    """Why a record cannot be used; turned into a FormatError or a Reject."""


class RecordParser:
    """Turns blocks into batches of texts."""

    def __init__(
        self,
        keys: Sequence[str],
        *,
        on_error: OnError,
        special_tokens: Sequence[str],
        start: Position = Position(),  # noqa: B008 - it is frozen
    ) -> None:
        """Take the position at which reading began, from which blocks count their records."""
        self.keys = list(keys)
        self.on_error = on_error
        self._start = start
        self._special = re.compile("|".join(map(re.escape, special_tokens))) if special_tokens else None
        self._special_head = _common_head(special_tokens)

    def parse(self, blocks: Iterator[Block], max_docs: int | None = None) -> Iterator[Batch]:
        """Yield one batch per block, `max_docs` documents in all.

        Raises:
            FormatError: A record is bad, unless they are skipped.
        """
        kept = 0
        for block in blocks:
            batch = self._parse_block(block, None if max_docs is None else max_docs - kept)
            kept += batch.num_documents
            yield batch
            if kept == max_docs:
                return

    def _parse_block(self, block: Block, max_docs: int | None) -> Batch:
        batch = Batch({key: [] for key in self.keys}, block.after, block.read_bytes)
        batch.num_special = dict.fromkeys(self.keys, 0)
        is_text = block.source.kind == "text"
        for number, raw in enumerate(block.records, block.first_record):
            if batch.num_documents == max_docs:
                break  # what follows is not looked at
            try:
                values = [_text_of(raw)] if is_text else self._texts_of(raw)
                specials = [] if values is None else list(map(self._spells_special, values))
            except BadRecordError as error:
                before = self._records_before(block)
                batch.rejects.append(reject_record(block, number, str(error), self.on_error, before))
                continue
            if values is None:
                continue
            for key, text, is_special in zip(self.keys, values, specials, strict=True):
                batch.texts[key].append(text)
                batch.num_special[key] += is_special
        return batch

    def _records_before(self, block: Block) -> int:
        """Return the lines before those that the block's numbers count, which a share does not read."""
        if self._start.offset and block.after.source == self._start.source:
            return count_lines(block.source.path, self._start.offset)
        return 0

    def _texts_of(self, raw: bytes) -> list[Text] | None:
        """Return the texts of a record; None for a blank line."""
        record = load_record(raw, keeps_long=True)
        if record is None:
            return None
        if not isinstance(record, dict):
            raise BadRecordError(
                f"is a JSON {_json_name(record)}, not an object like {{'{self.keys[0]}': '...'}}"
            )
        return [_value_of(record, key) for key in self.keys]

    def _spells_special(self, text: Text) -> bool:
        if isinstance(text, list):
            return any(map(self._spells_special, text))
        if isinstance(text, LongText):
            try:
                return text.find(self._special or NOTHING)
            except ValueError as error:
                raise BadRecordError(f"holds a string that is no text: {error}") from error
        if self._special is None or self._special_head not in text:
            return False
        return self._special.search(text) is not None


def _value_of(record: dict[str, object], key: str) -> Text:
    """Return the document under a key; `meta.text` is also found in the object under `meta`."""
    value: object = record
    for name in (key,) if key in record else key.split("."):
        if not isinstance(value, dict) or name not in value:
            raise BadRecordError(f"has no key '{key}'; its keys are {sorted(record)[:8]}")
        value = value[name]
    if isinstance(value, list):
        if wrong := [entry for entry in value if not isinstance(entry, str)]:
            raise BadRecordError(
                f"has a JSON {_json_name(wrong[0])} in the array under '{key}', which must hold strings"
            )
        return [entry for entry in value if entry]
    if not isinstance(value, str | LongText):
        raise BadRecordError(f"has a JSON {_json_name(value)} under '{key}', which must be a string")
    return value


def reject_record(block: Block, number: int, reason: str, on_error: OnError, before: int = 0) -> Reject:
    """Return the note of a bad record that is left out.

    Args:
        block: Where it is.
        number: Its number as the block counts.
        reason: What is wrong with it; a sentence without its subject.
        on_error: What to do.
        before: Records of the file before those that the block counts.

    Raises:
        FormatError: Bad records are not left out.
    """
    path = block.source.path
    raw = block.records[number - block.first_record]
    if block.source.kind == "json" and number == 1 and raw.strip() == b"{":
        reason = "begins an object of several lines; write each object on one line, or all in an array"
    if block.cut and raw is block.records[-1]:
        reason += " (the last line has no line end, so the file may be cut)"
    if on_error == "fail":
        unit = "line" if block.source.kind == "lines" else "record"
        raise FormatError(
            f"{path}, {unit} {before + number} {reason}; mend it, or pass --on-error skip to leave bad "
            "records out and count them"
        )
    return Reject(block.source.name, before + number, reason, _excerpt(raw))


def load_record(raw: bytes, *, keeps_long: bool = False) -> object:
    """Return the value of a raw record; None for a blank line.

    Args:
        raw: Its JSON.
        keeps_long: Whether long strings of an object come as LongText.

    Raises:
        BadRecordError: It is not JSON, or null.
    """
    try:
        record = load_long_record(raw) if keeps_long and len(raw) >= LONG_BYTES else orjson.loads(raw)
    except orjson.JSONDecodeError:
        if not raw.strip():
            return None
        record = _load_leniently(raw)
    if record is None:
        raise BadRecordError("is a JSON null, not an object")
    return record


def _load_leniently(raw: bytes) -> object:
    """Parse what Python's json takes and orjson does not (NaN, huge numbers); explain the rest."""
    text = _decode(raw)
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRecordError(f"is not JSON: {fault_of_line(error)}") from error
    except RecursionError as error:
        raise BadRecordError("is nested too deeply") from error
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        letter = error.object[error.start]
        raise BadRecordError(f"holds a lone surrogate \\u{ord(letter):04x}, which is no character") from error
    return record


def _text_of(raw: bytes) -> str | LongText:
    """Return the text of a whole file."""
    if len(raw) < LONG_BYTES:
        return _decode(raw)
    return LongText(raw, 0, len(raw), is_json=False)


def _decode(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadRecordError("begins with a UTF-16 mark; convert the file to UTF-8")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecordError(
            f"is not UTF-8: byte 0x{raw[error.start]:02x} at byte {error.start + 1}"
        ) from error


def _json_name(value: object) -> str:
    names = {type(None): "null", bool: "boolean", list: "array", dict: "object", str: "string"}
    return names.get(type(value), "number")


def _excerpt(raw: bytes) -> str:
    return raw[:EXCERPT].decode("utf-8", errors="replace")


def _common_head(tokens: Sequence[str]) -> str:
    if not tokens:
        return ""
    first, last = min(tokens), max(tokens)
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return first[:same]
