"""Convert whole weights: Hugging Face's folder, MindSpore's unified files, mindformers' fused form."""

from dataclasses import dataclass
from pathlib import Path

from qwen3_ckpt.engine.hf_output import write_hf_folder
from qwen3_ckpt.engine.unified import UNIFIED, write_parts
from qwen3_ckpt.sources.fused import fuse
from qwen3_ckpt.sources.sources import need_model_files, output_of, sources_of, total_bytes
from qwen3_model.checkpoints.fused import FusedLayout
from qwen3_model.checkpoints.model_weights import model_weights
from qwen3_model.checkpoints.rows import cast
from qwen3_model.checkpoints.weight_files import open_checkpoint


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """What to convert and into what."""

    source: Path
    """Weights of any form; see `open_checkpoint`."""
    target: str
    """"hf", "mindspore" (unified files with Hugging Face's names) or "mindformers" (fused weights)."""
    source_layout: FusedLayout
    """Row order of fused weights in the source."""
    target_layout: FusedLayout
    """Row order of fused weights to be written."""
    dtype: str | None
    """BF16, F16, F32, or None to keep each tensor's."""
    hf_dir: Path | None
    """Folder with config.json and tokenizer files; None to look beside the source."""


def convert(
    request: ConvertRequest, output_dir: Path, *, force: bool, quiet: bool, shard_bytes: int
) -> list[str]:
    """Write `output_dir`; return notes on the values.

    Raises:
        ConfigError: No config.json was found.
        WeightError: The weights are not exactly those of the model.
        Qwen3Error: See `output_of`.
    """
    checkpoint = open_checkpoint(request.source)
    model = need_model_files(checkpoint.path, request.hf_dir)
    sources = sources_of([request.source], [checkpoint], model)
    tensors = model_weights(checkpoint.tensors, model.config, request.source_layout)
    if request.dtype:
        tensors = {name: cast(tensor, request.dtype) for name, tensor in tensors.items()}
    if request.target == "hf":
        return write_hf_folder(
            output_dir, tensors, model, sources, force=force, quiet=quiet, shard_bytes=shard_bytes
        )
    if request.target == "mindformers":
        tensors = fuse(tensors, model.config, request.target_layout)
    total = total_bytes(tensors.values())
    with output_of(sources, output_dir, total, force=force, quiet=quiet) as (folder, progress):
        notes = write_parts(folder / UNIFIED, tensors, progress.advance)
        model.copy(folder / "hf_files")
    return notes
