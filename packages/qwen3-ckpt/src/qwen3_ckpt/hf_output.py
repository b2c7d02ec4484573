"""Write a Hugging Face folder: weights, index, config and tokenizer files, all or nothing."""

import json
from dataclasses import replace
from pathlib import Path

from qwen3_ckpt.companions import copy_companions
from qwen3_ckpt.rows import LazyTensor
from qwen3_model.config import Qwen3Config
from qwen3_model.files import output_directory, require_free_space
from qwen3_model.hf_folder import write_hf_weights
from qwen3_model.progress import Progress

DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def write_hf_folder(
    output_dir: Path,
    tensors: dict[str, LazyTensor],
    config: Qwen3Config,
    companions: Path,
    *,
    force: bool,
    quiet: bool,
    shard_bytes: int,
) -> None:
    """Write the model's weights and copy its small files from `companions`.

    config.json states the dtype of the weights as written.

    Raises:
        OutputExistsError: `output_dir` is there and `force` is false.
    """
    total = sum(tensor.plan.size_bytes for tensor in tensors.values())
    require_free_space(output_dir, total)
    with (
        output_directory(output_dir, force=force) as folder,
        Progress("write", total, "B", quiet=quiet) as progress,
    ):
        pairs = [(tensor.plan, tensor.pieces(progress.advance)) for tensor in tensors.values()]
        write_hf_weights(folder, pairs, shard_bytes)
        copy_companions(companions, folder)
        dtype = DTYPE_NAMES[next(iter(tensors.values())).plan.dtype]
        text = json.dumps(replace(config, dtype=dtype).to_hf(), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
