"""Random weights as a Hugging Face folder, written in pieces: no more than a block of rows is in memory."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.fresh_weights import fresh_blocks
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan, from_float32
from qwen3_model.command.files import output_directory, refuse_existing, require_free_space
from qwen3_model.command.progress import Progress
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import FormatError
from qwen3_model.text.tokenizer import TOKENIZER_FILES

STORED_AS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
# A released folder has this file, too, and whoever generates text reads it.
GENERATION_CONFIG = "generation_config.json"


def write_fresh(
    config: Qwen3Config,
    out_dir: Path,
    *,
    seed: int,
    dtype: str,
    tokenizer_dir: Path | None = None,
    force: bool = False,
    quiet: bool = True,
) -> None:
    """Write config.json, weights of `dtype` and, from `tokenizer_dir`, the tokenizer's files to `out_dir`.

    Raises:
        OutputExistsError: `out_dir` exists and `force` is false, or it is or holds `tokenizer_dir`.
        FormatError: `tokenizer_dir` has no tokenizer.json.
        Qwen3Error: The disk is too full.
    """
    sources = [tokenizer_dir] if tokenizer_dir else []
    refuse_existing(out_dir, force=force, sources=sources)
    if tokenizer_dir is not None and not (tokenizer_dir / "tokenizer.json").is_file():
        raise FormatError(f"{tokenizer_dir} has no tokenizer.json; give a folder with a tokenizer")
    stored = STORED_AS[dtype]
    plans = [TensorPlan(name, stored, shape) for name, shape in config.weight_shapes().items()]
    total_bytes = sum(plan.size_bytes for plan in plans)
    require_free_space(out_dir.parent, total_bytes)
    with (
        output_directory(out_dir, force=force, sources=sources) as partial_dir,
        Progress("weights", total_bytes, "B", quiet=quiet) as progress,
    ):
        text = json.dumps(replace(config, dtype=dtype).to_hf(), indent=2) + "\n"
        (partial_dir / "config.json").write_text(text, encoding="utf-8")
        for name in (*TOKENIZER_FILES, GENERATION_CONFIG):
            if tokenizer_dir is not None and (tokenizer_dir / name).is_file():
                shutil.copyfile(tokenizer_dir / name, partial_dir / name)
        write_hf_weights(partial_dir, [(plan, _pieces(config, plan, seed, progress)) for plan in plans])


def _pieces(config: Qwen3Config, plan: TensorPlan, seed: int, progress: Progress) -> Iterator[np.ndarray]:
    for block in fresh_blocks(config, plan.name, seed):
        piece = from_float32(block, plan.dtype)
        yield piece
        progress.advance(piece.nbytes)
