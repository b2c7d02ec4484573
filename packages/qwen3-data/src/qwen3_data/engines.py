"""Two encoders with the same ids: fastokens for speed, tokenizers as the reference."""

import importlib.util
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3_model.errors import ConfigError, FormatError

ENGINES = ("auto", "fastokens", "tokenizers")
WORTH_LOADING_BYTES = 1 << 20
"""Smaller inputs are encoded by tokenizers before fastokens has loaded."""


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
    """Load the encoder "fastokens" or "tokenizers" for the tokenizer file `path`.

    Raises:
        FormatError: The tokenizer is damaged.
    """
    if name == "tokenizers":
        return TokenizersEngine(path, allow_special=allow_special)
    return FastokensEngine(path, allow_special=allow_special)


def choose_engine(name: str, input_bytes: int | None) -> str:
    """Return "fastokens" or "tokenizers" for what `--engine` says.

    Args:
        name: One of ENGINES; "auto" takes fastokens where it is installed and worth the time that it loads.
        input_bytes: Text to encode, None where it is not known.

    Raises:
        ConfigError: fastokens is asked for and not installed.
    """
    if name == "fastokens" and not _has_fastokens():
        raise ConfigError(
            "--engine fastokens needs the package fastokens, which is not installed; pass --engine tokenizers"
        )
    if name == "auto":
        is_small = input_bytes is not None and input_bytes < WORTH_LOADING_BYTES
        return "tokenizers" if is_small or not _has_fastokens() else "fastokens"
    return name


def load_in_background(name: str, path: Path, *, allow_special: bool) -> "Future[Engine]":
    """Begin to load an encoder as `make_engine` does; its errors come with the result."""
    future: Future[Engine] = Future()

    def load() -> None:
        try:
            future.set_result(make_engine(name, path, allow_special=allow_special))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=load).start()
    return future


def _has_fastokens() -> bool:
    return importlib.util.find_spec("fastokens") is not None
