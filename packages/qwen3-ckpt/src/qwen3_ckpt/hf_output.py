"""Write a Hugging Face folder: weights, index, config and tokenizer files, all or nothing."""

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from qwen3_ckpt.parallel import Count, run_all
from qwen3_ckpt.rows import LazyTensor
from qwen3_model.companions import companion_files, copy_companions
from qwen3_model.config import Qwen3Config
from qwen3_model.files import output_directory, require_free_space
from qwen3_model.hf_folder import INDEX_FILE, encode_index, plan_shards, shard_names
from qwen3_model.progress import Progress
from qwen3_model.safetensors_file import write_safetensors

DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def write_hf_folder(  # noqa: PLR0913 - the last four say how, not what
    output_dir: Path,
    tensors: dict[str, LazyTensor],
    config: Qwen3Config,
    companions: Path,
    *,
    force: bool,
    quiet: bool,
    shard_bytes: int,
    sources: Iterable[Path],
    workers: int | None = None,
) -> None:
    """Write the model's weights and copy its small files from `companions`.

    config.json states the dtype of the weights as written.

    Raises:
        OutputExistsError: `output_dir` is there and `force` is false.
    """
    total = sum(tensor.plan.size_bytes for tensor in tensors.values())
    require_free_space(output_dir, total)
    with (
        output_directory(output_dir, force=force, sources=(*sources, *companion_files(companions))) as folder,
        Progress("write", total, "B", quiet=quiet) as progress,
    ):
        shards = plan_shards([tensor.plan for tensor in tensors.values()], shard_bytes)
        names = shard_names(len(shards))
        jobs = [
            partial(_write, folder / name, [tensors[plan.name] for plan in shard])
            for name, shard in zip(names, shards, strict=True)
        ]
        run_all(jobs, progress.advance, workers)
        if len(shards) > 1:
            (folder / INDEX_FILE).write_text(encode_index(names, shards), encoding="utf-8")
        copy_companions(companions, folder)
        dtype = DTYPE_NAMES[next(iter(tensors.values())).plan.dtype]
        text = json.dumps(replace(config, dtype=dtype).to_hf(), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _write(path: Path, tensors: list[LazyTensor], count: Count) -> None:
    write_safetensors(path, [(tensor.plan, tensor.pieces(count)) for tensor in tensors], {"format": "pt"})
