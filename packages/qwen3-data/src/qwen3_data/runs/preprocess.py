"""`qwen3-data preprocess`: text to Megatron token files, checked before it starts."""

import time
from typing import TYPE_CHECKING

from qwen3_data.encode.engines import choose_engine, load_encoders
from qwen3_data.encode.tokenizer_facts import TokenizerFile
from qwen3_data.input.sources import find_sources, input_size
from qwen3_data.runs.preprocess_settings import Settings

if TYPE_CHECKING:
    from qwen3_data.runs.preprocess_run import Result


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
