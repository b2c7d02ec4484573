"""Files that are read whole: no more of one than a stated limit, whatever the file claims or is."""

from pathlib import Path

from qwen3_model.errors import FormatError

SETTINGS_BYTES = 16_000_000
"""Limit of a config, a tokenizer's settings, a manifest; those in use have some thousand bytes."""
INDEX_BYTES = 100_000_000
"""Limit of an index of weights, a strategy, a tokenizer; as safetensors allows for a header."""
YAML_BYTES = 1_000_000
"""Limit of a YAML file, which takes seconds for each megabyte."""
INPUT_BYTES = 1_000_000_000
"""Limit of a file of prompts or of a text to score."""
PIECE_BYTES = 1 << 20
LFS_POINTER, LFS_POINTER_BYTES = b"version https://git-lfs", 64
"""How the file begins that a clone without git-lfs has in place of a large one."""


def read_small(path: Path, most_bytes: int = SETTINGS_BYTES) -> bytes:
    """Return the contents of a file.

    Raises:
        FormatError: It has more than `most_bytes`, or is a pointer of Git LFS.
        OSError: It cannot be read.
    """
    raw = bytearray()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):  # which would allocate as much as it is asked for
            raw += piece
            if len(raw) > most_bytes:
                raise FormatError(
                    f"{path} has more than {most_bytes:,} bytes, the most that is read of such a file"
                )
    refuse_lfs_pointer(path, raw[:LFS_POINTER_BYTES])
    return bytes(raw)


def refuse_lfs_pointer(path: Path, head: bytes | bytearray, wanted: str = "the file itself") -> None:
    """Raise FormatError if a file that begins with `head` only says where Git LFS has what is `wanted`."""
    if head.startswith(LFS_POINTER):
        raise FormatError(
            f"{path} is a Git LFS pointer, not {wanted}; run `git lfs pull` in its repository, or download "
            "the file"
        )


def read_small_text(path: Path, most_bytes: int = SETTINGS_BYTES) -> str:
    """Return the text of a file in UTF-8; raises what `read_small` does, and UnicodeDecodeError."""
    return read_small(path, most_bytes).decode("utf-8")
