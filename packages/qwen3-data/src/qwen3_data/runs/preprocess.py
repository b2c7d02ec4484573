"""`qwen3-data preprocess`: text to Megatron token files, checked before it starts."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_data.encode.engines import choose_engine, load_encoders
from qwen3_data.encode.tokenizer_facts import TokenizerFile
from qwen3_data.input.blocks import MAX_RECORD_BYTES
from qwen3_data.input.records import OnError
from qwen3_data.input.sources import find_sources, input_size

if TYPE_CHECKING:
    from qwen3_data.runs.preprocess_run import Result


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What one run is asked to do."""

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


def preprocess(settings: Settings) -> "Result":
    """Encode the inputs and write `<prefix>_<key>_document.{bin,idx,json}` for each key.

    Raises:
        Qwen3Error: Anything that cannot work, before or during the work; no output is left then.
    """
    started_s = time.monotonic()
    sources = find_sources(settings.inputs)
    chosen = choose_engine(settings.engine, input_size(sources))
    file = TokenizerFile(settings.tokenizer_dir)
    with load_encoders(chosen, file, allow_special=settings.allow_special) as encoders:
        # Imported here, since numpy takes a tenth of a second to import, in which the encoder loads.
        from qwen3_data.runs.preprocess_run import run_preprocess

        return run_preprocess(settings, sources, file, encoders, started_s)
