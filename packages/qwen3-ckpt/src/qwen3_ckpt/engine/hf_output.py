"""Write a Hugging Face folder: weights, index, config and tokenizer files, all or nothing."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from qwen3_ckpt.engine.parallel import Count, run_all
from qwen3_ckpt.engine.values import ValueCheck
from qwen3_ckpt.sources.sources import ModelFiles, Sources, output_of, total_bytes
from qwen3_model.checkpoints.hf_folder import INDEX_FILE, encode_index, plan_shards, shard_names
from qwen3_model.checkpoints.rows import LazyTensor
from qwen3_model.checkpoints.safetensors_file import write_safetensors

DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def write_hf_folder(  # noqa: PLR0913 - the last four say how, not what
    output_dir: Path,
    tensors: dict[str, LazyTensor],
    model: ModelFiles,
    sources: Sources,
    *,
    force: bool,
    quiet: bool,
    shard_bytes: int,
    workers: int | None = None,
) -> list[str]:
    """Write the model's weights and copy its small files; return notes on their values.

    config.json states the dtype of most of the weights as written.

    Raises:
        Qwen3Error: See `output_of`.
    """
    total, check = total_bytes(tensors.values()), ValueCheck()
    with output_of(sources, output_dir, total, force=force, quiet=quiet) as (folder, progress):
        shards = plan_shards([tensor.plan for tensor in tensors.values()], shard_bytes)
        names = shard_names(len(shards))
        jobs = [
            partial(_write, folder / name, [tensors[plan.name] for plan in shard], check)
            for name, shard in zip(names, shards, strict=True)
        ]
        run_all(jobs, progress.advance, workers)
        if len(shards) > 1:
            (folder / INDEX_FILE).write_text(encode_index(names, shards), encoding="utf-8")
        model.copy(folder)
        sizes = dict.fromkeys(DTYPE_NAMES, 0)
        for tensor in tensors.values():
            sizes[tensor.plan.dtype] += tensor.plan.size_bytes
        dtype = DTYPE_NAMES[max(sizes, key=sizes.__getitem__)]
        text = json.dumps(replace(model.config, dtype=dtype).to_hf(), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    return check.notes()


def _write(path: Path, tensors: list[LazyTensor], check: ValueCheck, count: Count) -> None:
    entries = [(tensor.plan, check.pieces(tensor, count)) for tensor in tensors]
    write_safetensors(path, entries, {"format": "pt"})
