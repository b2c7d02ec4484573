"""A tokenizer's facts, read from its tokenizer.json in a tenth of the time that loading it takes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import orjson

from qwen3_data.encode.splitting import can_split
from qwen3_model.command.small_files import INDEX_BYTES, read_small
from qwen3_model.errors import ConfigError, FormatError

NO_ID = -1


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a run must know of a tokenizer before it is loaded."""

    directory: Path
    sha256: str
    vocab_size: int
    eod_id: int
    """NO_ID where none was asked for."""
    special_tokens: list[str]
    splits: bool


class AddedToken(TypedDict):
    """What is read here of an added token."""

    id: int
    content: str
    special: bool


class TokenizerFile:
    """The bytes of a tokenizer.json."""

    def __init__(self, directory: Path) -> None:
        self.path = tokenizer_path(directory)
        self._raw = read_small(self.path, INDEX_BYTES)
        self.sha256 = hashlib.sha256(self._raw).hexdigest()

    @property
    def json(self) -> str:
        """What an encoder loads.

        Raises:
            FormatError: It is no text.
        """
        try:
            return self._raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.path} is not UTF-8: {error}") from error

    def facts(self, eod_token: str | None) -> TokenizerFacts:
        """Return what can be known without loading it.

        Raises:
            ConfigError: It has no token `eod_token`.
            FormatError: It is damaged.
        """
        parsed, vocab, added = self._parse()
        added_ids = {entry["content"]: entry["id"] for entry in added}
        # A tokenizer from which tokens were taken may have larger ids than it has entries.
        vocab_size = max(len(vocab.keys() | added_ids), 1 + max((vocab | added_ids).values(), default=-1))
        special = [entry["content"] for entry in added if entry["special"]]
        eod_id = NO_ID if eod_token is None else added_ids.get(eod_token, vocab.get(eod_token))
        if eod_id is None:
            raise ConfigError(
                f"--eod-token {eod_token} is no token of {self.path.parent}; its special tokens are "
                f"{', '.join(special[:6]) or 'none'}"
            )
        return TokenizerFacts(
            directory=self.path.parent,
            sha256=self.sha256,
            vocab_size=vocab_size,
            eod_id=eod_id,
            special_tokens=special,
            splits=can_split(parsed),
        )

    def _parse(self) -> tuple[dict[str, object], dict[str, int], list[AddedToken]]:
        """Return the whole file, its vocabulary and its added tokens."""
        try:
            parsed = orjson.loads(self._raw)
        except ValueError as error:
            raise FormatError(f"{self.path} is not JSON: {error}") from error
        if not isinstance(parsed, dict) or not isinstance(parsed.get("model"), dict):
            raise FormatError(f"{self.path} is no tokenizer (it has no model)")
        vocab, added = parsed["model"].get("vocab", {}), parsed.setdefault("added_tokens", [])
        if not isinstance(vocab, dict):
            raise FormatError(f"{self.path} is no byte-pair tokenizer, as Qwen3's is")
        if not _is_sound(parsed, vocab, added):
            raise FormatError(f"{self.path} is no tokenizer that `tokenizers` can read")
        return parsed, vocab, added


def _is_sound(parsed: Mapping[str, object], vocab: Mapping[str, object], added: object) -> bool:
    """Return whether what is read here has the form that `tokenizers` demands, a second earlier than it."""
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        return False
    flags = ("special", "lstrip", "rstrip", "single_word")
    return (
        all(type(entry.get("content")) is str and type(entry.get("id")) is int for entry in added)
        and all(type(entry.get(flag)) is bool for entry in added for flag in flags)
        and all(type(number) is int and number >= 0 for number in vocab.values())
        and all(isinstance(parsed.get(part), dict | None) for part in ("pre_tokenizer", "normalizer"))
    )


def read_tokenizer(directory: Path, eod_token: str | None) -> TokenizerFacts:
    """Read what can be known of a tokenizer without loading it.

    Raises:
        ConfigError: It has no token `eod_token`.
        FormatError: It is missing or damaged.
    """
    return TokenizerFile(directory).facts(eod_token)


def tokenizer_path(directory: Path) -> Path:
    """Return the tokenizer.json of a folder.

    Raises:
        FormatError: It is missing.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FormatError(
            f"{directory} holds no tokenizer.json; give --tokenizer-dir the folder of a Qwen3 model"
        )
    return path
