"""What Rust libraries raise, as sentences: bare exceptions, and panics, which are no Exception."""

from collections.abc import Iterator
from contextlib import contextmanager

from qwen3_model.errors import FormatError, Qwen3Error

PANIC = "PanicException"
"""Name of pyo3's class of panics, which derives from BaseException and cannot be imported."""


@contextmanager
def rust_errors(sentence: str) -> Iterator[None]:
    """Turn whatever a Rust library raises inside into a FormatError that begins with `sentence`."""
    try:
        yield
    except Qwen3Error:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise FormatError(f"{sentence}: {error}") from error
