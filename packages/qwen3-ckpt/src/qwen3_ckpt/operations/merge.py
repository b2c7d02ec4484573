"""Merge a distributed checkpoint into MindSpore's unified layout or straight into a Hugging Face folder.

Unified layout, below `<output>/<suffix>_ckpt_convert/`:
    merge_strategy/merge_strategy.ckpt    the strategies of all stages in one file
    unified_safe/part0.safetensors, ...   whole tensors, about 3 GiB a file
    unified_safe/param_name_map.json      {"metadata": {"total_size"}, "weight_map": {tensor: file}}
    unified_safe/hyper_param.safetensors  scalars of the run, such as global_step
    hf_files/                             config.json and tokenizer files of the run, where it kept them
"""

from dataclasses import dataclass
from pathlib import Path

from qwen3_ckpt.engine.hf_output import write_hf_folder
from qwen3_ckpt.engine.unified import UNIFIED, write_parts, write_run_state
from qwen3_ckpt.sources.sources import (
    ModelFiles,
    Sources,
    find_model_files,
    output_of,
    sources_of,
    total_bytes,
)
from qwen3_model.checkpoints.fused import FusedLayout
from qwen3_model.checkpoints.model_weights import check_shapes, model_weights
from qwen3_model.checkpoints.replicas import check_replicas, check_stage_twins
from qwen3_model.checkpoints.rows import LazyTensor, cast
from qwen3_model.checkpoints.strategies import merged_strategy
from qwen3_model.checkpoints.weight_files import Checkpoint, open_checkpoint
from qwen3_model.command.files import refuse_existing, require_free_space
from qwen3_model.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """What to merge and how."""

    checkpoint_dir: Path
    """Folder with rank_0, rank_1, ..."""
    strategy: Path | None
    """Folder or file of strategies; None for a checkpoint that one process wrote."""
    suffix: str | None
    """Epoch and step, `E_S`; None for the newest step that every rank has."""
    filter_out_prefixes: tuple[str, ...]
    """Tensors whose names begin so are left out."""
    check_replicas: bool
    """Whether ranks that should hold equal slices are compared byte by byte."""
    hf_dir: Path | None
    """Folder with config.json and tokenizer files; None to look beside the checkpoint."""
    layout: FusedLayout = FusedLayout()  # noqa: RUF009 - it is frozen
    """Row order of fused weights, where a Hugging Face folder is made of them."""
    has_redundancy: bool | None = None
    """What the user believes about tensors that several ranks hold alike; the files decide."""
    dtype: str | None = None
    """BF16, F16 or F32 for a Hugging Face folder, or None to keep each tensor's."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A merge that can be written."""

    request: MergeRequest
    checkpoint: Checkpoint
    tensors: dict[str, LazyTensor]
    """The checkpoint's tensors that are wanted."""
    model: ModelFiles | None
    sources: Sources
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What a merge will write."""

    folder: Path
    tensors: dict[str, LazyTensor]
    is_hf: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return total_bytes(self.tensors.values())


def prepare(request: MergeRequest) -> Prepared:
    """Open and check everything; nothing is written.

    Raises:
        Qwen3Error: Something is missing, damaged, or does not fit; see `open_checkpoint`.
    """
    checkpoint = open_checkpoint(request.checkpoint_dir, suffix=request.suffix, strategy=request.strategy)
    if checkpoint.ranks is None:
        raise ConfigError(
            f"{request.checkpoint_dir} holds no folders rank_0, rank_1, ...; give a checkpoint folder, or "
            "use `qwen3-ckpt convert` for whole weights"
        )
    if request.check_replicas:
        check_replicas(checkpoint.ranks.files, checkpoint.stages)
        check_stage_twins(checkpoint.stage_twins)
    tensors = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith(request.filter_out_prefixes)
    }
    model = find_model_files(request.checkpoint_dir, request.hf_dir)
    if model:
        check_shapes(tensors, model.config)
    sources = sources_of([request.checkpoint_dir, checkpoint.strategy], [checkpoint], model)
    notes = (*checkpoint.notes, *_redundancy_notes(checkpoint, request.has_redundancy))
    return Prepared(request, checkpoint, tensors, model, sources, notes)


def _redundancy_notes(checkpoint: Checkpoint, has_redundancy: bool | None) -> list[str]:
    files = checkpoint.ranks.files.values() if checkpoint.ranks else ()
    stated = {file.metadata.get("remove_redundancy") for file in files}
    if has_redundancy is None or str(not has_redundancy) in stated or stated == {None}:
        return []
    return [
        f"--has-redundancy {has_redundancy} is not what the files say; each tensor is taken from where it is"
    ]


def plan_output(prepared: Prepared, output_dir: Path, target: str, *, force: bool) -> Output:
    """Return what a merge to `target`, "mindspore" or "hf", writes at or below `output_dir`.

    Raises:
        ConfigError: A Hugging Face folder needs a config.json and none was found.
        WeightError: The tensors are not exactly those of the model, where one is wanted.
        OutputExistsError: The folder is there and `force` is false, or it is or holds a source.
        Qwen3Error: The disk is too full.
    """
    if target == "hf":
        output = Output(output_dir, _model_tensors(prepared), is_hf=True)
    else:
        folder = output_dir / f"{prepared.checkpoint.suffix}_ckpt_convert"
        output = Output(folder, prepared.tensors, is_hf=False)
    refuse_existing(output.folder, force=force, sources=prepared.sources.all_paths())
    require_free_space(output_dir, output.size_bytes)
    return output


def write_output(
    prepared: Prepared, output: Output, *, force: bool, quiet: bool, shard_bytes: int, workers: int | None
) -> list[str]:
    """Write what `plan_output` planned, in one pass over the ranks and `workers` files at a time.

    Returns:
        Notes on the values.
    """
    sources, model, checkpoint = prepared.sources, prepared.model, prepared.checkpoint
    if output.is_hf and model:
        return write_hf_folder(
            output.folder, output.tensors, model, sources,
            force=force, quiet=quiet, shard_bytes=shard_bytes, workers=workers,
        )  # fmt: skip
    size = output.size_bytes
    with output_of(sources, output.folder, size, force=force, quiet=quiet, label="merge") as (
        folder,
        progress,
    ):
        notes = write_parts(folder / UNIFIED, output.tensors, progress.advance, workers)
        write_run_state(folder / UNIFIED, checkpoint.run_state)
        if checkpoint.strategy:
            strategy_dir = folder / "merge_strategy"
            strategy_dir.mkdir()
            (strategy_dir / "merge_strategy.ckpt").write_bytes(merged_strategy(checkpoint.strategy))
        if model:
            model.copy(folder / "hf_files")
    return notes


def _model_tensors(prepared: Prepared) -> dict[str, LazyTensor]:
    if prepared.model is None:
        raise ConfigError(
            "a Hugging Face folder needs a config.json, and none lies beside the checkpoint; name its folder "
            "with --hf-dir"
        )
    tensors = model_weights(prepared.tensors, prepared.model.config, prepared.request.layout)
    dtype = prepared.request.dtype
    return {name: cast(tensor, dtype) for name, tensor in tensors.items()} if dtype else tensors
