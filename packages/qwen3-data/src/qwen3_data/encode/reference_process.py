"""The reference encoder in a process of its own: loading it holds Python's lock, which would stop the others.

Run as a script it reads one JSON text per line and answers with the JSON list of its ids, or with the
sentence that says why there are none.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from qwen3_model.errors import FormatError
from qwen3_model.text.rust_errors import rust_errors

CLOSE_S = 5.0
NICENESS = 5
"""It has time until the first texts are encoded, which wait for the other encoder to load."""


class ReferenceProcess:
    """Encodes single texts with `tokenizers`; a context manager that ends the process."""

    def __init__(self, path: Path, *, allow_special: bool) -> None:
        # -P keeps this folder, whose modules may be called like the library's, off the path.
        words = [sys.executable, "-P", __file__, str(path), "special" if allow_special else "text"]
        # In a process group of its own, so that Ctrl-C at a terminal reaches the parent alone.
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text.

        Raises:
            FormatError: The tokenizer cannot be read, or cannot encode.
            ChildProcessError: The process died; its own message, if any, stands on stderr.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(text).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise ChildProcessError(
                f"the process of the reference encoder died with code {self._process.wait(CLOSE_S)}"
            )
        ids = json.loads(answer)
        if isinstance(ids, str):
            raise FormatError(ids)
        return ids

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def serve(path: str, mode: str) -> None:
    """Answer until the input ends, which it does when the parent is gone."""
    os.nice(NICENESS)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a parent that is gone hears no complaint
    from tokenizers import Tokenizer

    try:
        with rust_errors(f"{path} is no tokenizer that `tokenizers` can read"):
            tokenizer = Tokenizer.from_file(path)
    except FormatError as error:
        sys.stdin.readline()  # an answer before the question would find its writer gone
        _answer(str(error))
        return
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = mode == "text"
    for line in sys.stdin:
        try:
            with rust_errors(f"`tokenizers` cannot encode with {path}"):
                _answer(tokenizer.encode(json.loads(line), add_special_tokens=False).ids)
        except FormatError as error:
            _answer(str(error))


def _answer(answer: list[int] | str) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
