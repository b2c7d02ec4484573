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

from qwen3_ckpt.assemble import Assembled, assemble, without_strategy
from qwen3_ckpt.check_shapes import check_shapes
from qwen3_ckpt.hf_output import write_hf_folder
from qwen3_ckpt.names import hf_tensors
from qwen3_ckpt.rank_files import RankFiles, open_rank_files
from qwen3_ckpt.replicas import check_replicas, check_samples, check_stage_twins
from qwen3_ckpt.rows import LazyTensor, cast
from qwen3_ckpt.strategies import Stages, merged_strategy, read_stages
from qwen3_ckpt.unified import UNIFIED, write_parts, write_run_state
from qwen3_model.companions import companion_files, copy_companions, find_companions
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.files import output_directory, refuse_existing, require_free_space
from qwen3_model.fused import FusedLayout
from qwen3_model.progress import Progress


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

    ranks: RankFiles
    strategy: Path | None
    checkpoint: Assembled
    companions: Path | None
    config: Qwen3Config | None
    layout: FusedLayout
    dtype: str | None

    def sources(self) -> list[Path]:
        """Return every file and folder that the merge reads."""
        found = [file.path for file in self.ranks.files.values()]
        found += [self.strategy] if self.strategy else []
        return found + (companion_files(self.companions) if self.companions else [])


@dataclass(frozen=True, slots=True)
class Output:
    """What a merge will write."""

    folder: Path
    tensors: dict[str, LazyTensor]
    is_hf: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.plan.size_bytes for tensor in self.tensors.values())


def prepare(request: MergeRequest) -> Prepared:
    """Open and check everything; nothing is written.

    Raises:
        Qwen3Error: Something is missing, damaged, or does not fit; see `assemble`.
    """
    ranks = open_rank_files(request.checkpoint_dir, request.suffix)
    notes: list[str] = []
    stages: Stages = {}
    if request.strategy is None:
        checkpoint = without_strategy(ranks)
    else:
        stages, notes = read_stages(request.strategy)
        checkpoint = assemble(ranks, stages)
    checkpoint.notes += notes + _redundancy_notes(ranks, request.has_redundancy)
    check_samples(ranks, stages)
    if request.check_replicas:
        check_replicas(ranks, stages)
        check_stage_twins(checkpoint.stage_twins)
    for prefix in request.filter_out_prefixes:
        checkpoint.tensors = {n: t for n, t in checkpoint.tensors.items() if not n.startswith(prefix)}
    companions = request.hf_dir or find_companions(request.checkpoint_dir)
    config = Qwen3Config.from_dir(companions) if companions else None
    if config:
        check_shapes(checkpoint.tensors, config)
    return Prepared(ranks, request.strategy, checkpoint, companions, config, request.layout, request.dtype)


def _redundancy_notes(ranks: RankFiles, has_redundancy: bool | None) -> list[str]:
    stated = {file.metadata.get("remove_redundancy") for file in ranks.files.values()}
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
        OutputExistsError: The folder is there and `force` is false.
        Qwen3Error: The disk is too full.
    """
    if target == "hf":
        output = Output(output_dir, _model_tensors(prepared), is_hf=True)
    else:
        folder = output_dir / f"{prepared.ranks.suffix}_ckpt_convert"
        output = Output(folder, prepared.checkpoint.tensors, is_hf=False)
    refuse_existing(output.folder, force=force, sources=prepared.sources())
    require_free_space(output_dir, output.size_bytes)
    return output


def write_output(
    prepared: Prepared, output: Output, *, force: bool, quiet: bool, shard_bytes: int, workers: int | None
) -> None:
    """Write what `plan_output` planned, in one pass over the ranks and `workers` files at a time."""
    if output.is_hf and prepared.config and prepared.companions:
        write_hf_folder(
            output.folder, output.tensors, prepared.config, prepared.companions,
            force=force, quiet=quiet, shard_bytes=shard_bytes, workers=workers,
            sources=prepared.sources(),
        )  # fmt: skip
        return
    with (
        output_directory(output.folder, force=force, sources=prepared.sources()) as folder,
        Progress("merge", output.size_bytes, "B", quiet=quiet) as progress,
    ):
        write_parts(folder / UNIFIED, output.tensors, progress.advance, workers)
        write_run_state(folder / UNIFIED, prepared.checkpoint.run_state)
        if prepared.strategy:
            strategy_dir = folder / "merge_strategy"
            strategy_dir.mkdir()
            (strategy_dir / "merge_strategy.ckpt").write_bytes(merged_strategy(prepared.strategy))
        if prepared.companions:
            copy_companions(prepared.companions, folder / "hf_files")


def _model_tensors(prepared: Prepared) -> dict[str, LazyTensor]:
    if prepared.config is None:
        raise ConfigError(
            "a Hugging Face folder needs a config.json, and none lies beside the checkpoint; name its folder "
            "with --hf-dir"
        )
    tensors = hf_tensors(prepared.checkpoint.tensors, prepared.config, prepared.layout)
    if prepared.dtype:
        tensors = {name: cast(tensor, prepared.dtype) for name, tensor in tensors.items()}
    return tensors
