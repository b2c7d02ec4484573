"""Two encoders with the same ids: fastokens for speed, tokenizers as the reference."""

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from qwen3_data.encode.reference_process import ReferenceProcess
from qwen3_data.encode.tokenizer_facts import TokenizerFile
from qwen3_model.errors import ConfigError
from qwen3_model.text.rust_errors import rust_errors

if TYPE_CHECKING:  # numpy takes a tenth of a second to import, in which an encoder can begin to load
    import numpy as np
    from numpy.typing import NDArray

WORTH_LOADING_BYTES = 1 << 20
"""Smaller inputs are encoded by tokenizers before fastokens has loaded."""


class Engine(Protocol):
    """Encodes many texts at once."""

    name: str

    def encode(self, texts: Sequence[str]) -> "tuple[NDArray[np.uint32], NDArray[np.int64]]":
        """Return all ids, joined, and where each text's begin (one more than texts)."""
        ...


class FastokensEngine:
    """The Rust encoder `fastokens`, which keeps ids in one buffer and uses all cores."""

    name = "fastokens"

    def __init__(self, file: TokenizerFile, *, allow_special: bool) -> None:
        import fastokens

        with rust_errors(
            f"fastokens cannot read {file.path} (pass --engine tokenizers to use the reference)"
        ):
            self._tokenizer = fastokens.Tokenizer.from_json_str(file.json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._as_text = not allow_special
        self._path = file.path

    def encode(self, texts: Sequence[str]) -> "tuple[NDArray[np.uint32], NDArray[np.int64]]":
        """Return all ids, joined, and where each text's begin (one more than texts)."""
        import numpy as np

        with rust_errors(f"fastokens cannot encode with {self._path}"):
            ids, offsets = self._tokenizer.encode_batch_flat(list(texts), False, self._as_text)
        return np.frombuffer(ids, dtype="<u4"), np.frombuffer(offsets, dtype="<i8")


class TokenizersEngine:
    """Hugging Face's own encoder, on all cores."""

    name = "tokenizers"

    def __init__(self, file: TokenizerFile, *, allow_special: bool) -> None:
        from tokenizers import Tokenizer

        with rust_errors(f"{file.path} is no tokenizer that `tokenizers` can read"):
            self._tokenizer = Tokenizer.from_file(str(file.path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = not allow_special
        self._path = file.path

    def encode(self, texts: Sequence[str]) -> "tuple[NDArray[np.uint32], NDArray[np.int64]]":
        """Return all ids, joined, and where each text's begin (one more than texts)."""
        import numpy as np

        with rust_errors(f"`tokenizers` cannot encode with {self._path}"):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]
        offsets = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in ids], out=offsets[1:])
        return (np.concatenate(ids) if ids else np.empty(0, dtype=np.uint32)), offsets


def make_engine(name: str, file: TokenizerFile, *, allow_special: bool) -> Engine:
    """Load the encoder "fastokens" or "tokenizers" for a tokenizer.json.

    Raises:
        FormatError: The tokenizer is damaged.
    """
    if name == "tokenizers":
        return TokenizersEngine(file, allow_special=allow_special)
    return FastokensEngine(file, allow_special=allow_special)


def choose_engine(name: str, input_bytes: int | None) -> str:
    """Return "fastokens" or "tokenizers" for what `--engine` says.

    Args:
        name: auto, fastokens or tokenizers; "auto" takes fastokens where it is installed and worth the time
            that it loads.
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


@dataclass(frozen=True, slots=True)
class Encoders:
    """An encoder that is being loaded, and what its samples are compared with."""

    loading: "Future[Engine]"
    reference: ReferenceProcess | None
    """None where the encoder is the reference."""


@contextmanager
def load_encoders(name: str, file: TokenizerFile, *, allow_special: bool) -> Iterator[Encoders]:
    """Begin to load the encoder `name` in a thread and the reference in a process of its own.

    Errors of an encoder come with its result.
    """
    future: Future[Engine] = Future()

    def load() -> None:
        try:
            future.set_result(make_engine(name, file, allow_special=allow_special))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=load).start()
    if name == "tokenizers":
        yield Encoders(future, None)
        return
    with ReferenceProcess(file.path, allow_special=allow_special) as reference:
        yield Encoders(future, reference)


def _has_fastokens() -> bool:
    return importlib.util.find_spec("fastokens") is not None
