"""The settings of one run of `preprocess`."""

from dataclasses import dataclass
from pathlib import Path

from qwen3_data.input.blocks import MAX_RECORD_BYTES
from qwen3_data.input.records import OnError


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All options of the command, by their names."""

    inputs: tuple[str, ...]
    output_prefix: Path
    tokenizer_dir: Path
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = True
    eod_token: str = "<|endoftext|>"
    allow_special: bool = False
    split_sentences: bool = False
    keep_newlines: bool = False
    engine: str = "auto"
    dtype: str = "auto"
    on_error: OnError = "fail"
    rejects: Path | None = None
    max_docs: int | None = None
    max_record_bytes: int = MAX_RECORD_BYTES
    shard_bytes: int = 256 << 20
    """Token bytes between two resume points."""
    shard_index: int = 0
    num_shards: int = 1
    resume: bool = False
    force: bool = False
    quiet: bool = False
