"""A tokenizer's facts, read from its tokenizer.json in a tenth of the time that loading it takes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from qwen3_data.splitting import can_split
from qwen3_model.errors import ConfigError, FormatError


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a run must know of a tokenizer before it is loaded."""

    directory: Path
    sha256: str
    vocab_size: int
    eod_id: int
    special_tokens: list[str]
    splits: bool

    @property
    def path(self) -> Path:
        """The file that the encoders load."""
        return self.directory / "tokenizer.json"


def read_tokenizer(directory: Path, eod_token: str | None) -> TokenizerFacts:
    """Read what can be known of a tokenizer without loading it.

    Raises:
        ConfigError: It has no token `eod_token`.
        FormatError: It is missing or damaged.
    """
    parsed, raw = _read_json(directory)
    vocab, added = parsed["model"].get("vocab", {}), parsed.get("added_tokens", [])
    ids = {entry["content"]: entry["id"] for entry in added}
    if not isinstance(vocab, dict):
        raise FormatError(f"{directory / 'tokenizer.json'} is no byte-pair tokenizer, as Qwen3's is")
    eod_id = ids.get(eod_token, vocab.get(eod_token)) if eod_token is not None else None
    if eod_id is None and eod_token is not None:
        raise ConfigError(
            f"--eod-token {eod_token} is no token of {directory}; its special tokens are {sorted(ids)[:6]}"
        )
    return TokenizerFacts(
        directory=directory,
        sha256=hashlib.sha256(raw).hexdigest(),
        vocab_size=len(vocab.keys() | ids.keys()),
        eod_id=-1 if eod_id is None else eod_id,
        special_tokens=[entry["content"] for entry in added if entry["special"]],
        splits=can_split(parsed),
    )


def _read_json(directory: Path) -> tuple[dict[str, Any], bytes]:
    path = tokenizer_path(directory)
    raw = path.read_bytes()
    try:
        parsed = orjson.loads(raw)
    except ValueError as error:
        raise FormatError(f"{path} is no JSON: {error}") from error
    if not isinstance(parsed, dict) or not isinstance(parsed.get("model"), dict):
        raise FormatError(f"{path} is no tokenizer (it has no model)")
    return parsed, raw


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
