"""Two encoders with the same ids: fastokens for speed, tokenizers as the reference."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3_model.errors import ConfigError, FormatError

ENGINES = ("auto", "fastokens", "tokenizers")


class Engine(Protocol):
    """Encodes many texts at once."""

    name: str

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return all ids, joined, and where each text's begin (one more than texts)."""
        ...


class FastokensEngine:
    """The Rust encoder `fastokens`, which keeps ids in one buffer and uses all cores."""

    name = "fastokens"

    def __init__(self, path: Path, *, allow_special: bool) -> None:
        import fastokens

        try:
            self._tokenizer = fastokens.Tokenizer.from_file(str(path))
        except Exception as error:  # its Rust code raises several kinds
            raise FormatError(
                f"fastokens cannot read {path}: {error}; pass --engine tokenizers to use the reference"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._as_text = not allow_special

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return all ids, joined, and where each text's begin (one more than texts)."""
        ids, offsets = self._tokenizer.encode_batch_flat(list(texts), False, self._as_text)
        return np.frombuffer(ids, dtype="<u4"), np.frombuffer(offsets, dtype="<i8")


class TokenizersEngine:
    """Hugging Face's own encoder, on all cores."""

    name = "tokenizers"

    def __init__(self, path: Path, *, allow_special: bool) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise FormatError(f"{path} is no tokenizer that `tokenizers` can read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = not allow_special

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return all ids, joined, and where each text's begin (one more than texts)."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in ids], out=offsets[1:])
        return (np.concatenate(ids) if ids else np.empty(0, dtype=np.uint32)), offsets


def make_engine(name: str, path: Path, *, allow_special: bool) -> Engine:
    """Return the encoder called `name` for the tokenizer file `path`; "auto" takes fastokens where installed.

    Raises:
        ConfigError: fastokens is asked for and not installed.
        FormatError: The tokenizer is damaged.
    """
    if name == "fastokens" and not _has_fastokens():
        raise ConfigError(
            "--engine fastokens needs the package fastokens, which is not installed; pass --engine tokenizers"
        )
    if not uses_fastokens(name):
        return TokenizersEngine(path, allow_special=allow_special)
    return FastokensEngine(path, allow_special=allow_special)


def uses_fastokens(name: str) -> bool:
    """Return whether `make_engine(name, ...)` makes fastokens' engine."""
    return name == "fastokens" or (name == "auto" and _has_fastokens())


def _has_fastokens() -> bool:
    return importlib.util.find_spec("fastokens") is not None
