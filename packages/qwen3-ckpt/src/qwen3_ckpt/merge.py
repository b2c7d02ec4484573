"""Merge a distributed checkpoint into MindSpore's unified layout or straight into a Hugging Face folder.

Unified layout, below `<output>/<suffix>_ckpt_convert/`:
    merge_strategy/merge_strategy.ckpt    the strategies of all stages in one file
    unified_safe/part0.safetensors, ...   whole tensors, about 3 GiB a file
    unified_safe/param_name_map.json      {"metadata": {"total_size"}, "weight_map": {tensor: file}}
    unified_safe/hyper_param.safetensors  scalars of the run, such as global_step
    hf_files/                             config.json and tokenizer files of the run, where it kept them
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qwen3_ckpt.assemble import Assembled, assemble, without_strategy
from qwen3_ckpt.check_shapes import check_shapes
from qwen3_ckpt.companions import copy_companions, find_companions
from qwen3_ckpt.fused import FusedLayout
from qwen3_ckpt.hf_output import write_hf_folder
from qwen3_ckpt.names import hf_tensors
from qwen3_ckpt.parallel import Count, run_all
from qwen3_ckpt.rank_files import RankFiles, open_rank_files
from qwen3_ckpt.replicas import check_replicas, check_samples, check_stage_twins
from qwen3_ckpt.rows import LazyTensor, cast
from qwen3_ckpt.strategies import Stages, merged_strategy, read_stages
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.files import output_directory, refuse_existing, require_free_space
from qwen3_model.progress import Progress
from qwen3_model.safetensors_file import write_safetensors

PART_BYTES = 3 << 30
# The safetensors library's own order of element types.
LIBRARY_ORDER = (
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64",
    "U64",
)  # fmt: skip
UNIFIED_METADATA = {"format": "ms", "remove_redundancy": "False"}
UNIFIED, NAME_MAP, HYPER = "unified_safe", "param_name_map.json", "hyper_param.safetensors"


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

    def size_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.plan.size_bytes for tensor in self.checkpoint.tensors.values())


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


def check_output(prepared: Prepared, output_dir: Path, target: str, *, force: bool) -> Path:
    """Return the folder that a merge to `target`, "mindspore" or "hf", writes.

    Raises:
        OutputExistsError: The folder is there and `force` is false.
        Qwen3Error: The disk is too full, or the tensors are no whole model where one is wanted.
    """
    if target == "hf":
        _model_tensors(prepared)
        folder = output_dir
    else:
        folder = output_dir / f"{prepared.ranks.suffix}_ckpt_convert"
    refuse_existing(folder, force=force)
    require_free_space(output_dir, prepared.size_bytes())
    return folder


def merge_unified(
    prepared: Prepared, output_dir: Path, *, force: bool, quiet: bool, workers: int | None = None
) -> Path:
    """Write the unified layout below `output_dir`, `workers` files at a time, and return its folder.

    Raises:
        OutputExistsError: The folder is there and `force` is false.
    """
    target = check_output(prepared, output_dir, "mindspore", force=force)
    with (
        output_directory(target, force=force) as folder,
        Progress("merge", prepared.size_bytes(), "B", quiet=quiet) as progress,
    ):
        write_parts(folder / UNIFIED, prepared.checkpoint.tensors, progress.advance, workers)
        if prepared.checkpoint.run_state:
            state = sorted(prepared.checkpoint.run_state.values(), key=_place_in_file)
            _write(folder / UNIFIED / HYPER, state, {"format": "ms"}, lambda _: None)
        if prepared.strategy:
            (folder / "merge_strategy").mkdir()
            (folder / "merge_strategy" / "merge_strategy.ckpt").write_bytes(
                merged_strategy(prepared.strategy)
            )
        if prepared.companions:
            copy_companions(prepared.companions, folder / "hf_files")
    return target


def merge_to_hf(
    prepared: Prepared,
    output_dir: Path,
    *,
    force: bool,
    quiet: bool,
    shard_bytes: int,
    workers: int | None = None,
) -> Path:
    """Write a Hugging Face folder in one pass over the ranks and return it.

    Raises:
        ConfigError: No config.json was found for the model.
        OutputExistsError: The folder is there and `force` is false.
    """
    tensors, config, companions = _model_tensors(prepared)
    write_hf_folder(
        output_dir, tensors, config, companions,
        force=force, quiet=quiet, shard_bytes=shard_bytes, workers=workers,
    )  # fmt: skip
    return output_dir


def _model_tensors(prepared: Prepared) -> tuple[dict[str, LazyTensor], Qwen3Config, Path]:
    if prepared.companions is None or prepared.config is None:
        raise ConfigError(
            "a Hugging Face folder needs a config.json, and none lies beside the checkpoint; name its folder "
            "with --hf-dir"
        )
    tensors = hf_tensors(prepared.checkpoint.tensors, prepared.config, prepared.layout)
    if prepared.dtype:
        tensors = {name: cast(tensor, prepared.dtype) for name, tensor in tensors.items()}
    return tensors, prepared.config, prepared.companions


def plan_parts(tensors: dict[str, LazyTensor]) -> list[list[LazyTensor]]:
    """Share tensors out over files of about PART_BYTES, the largest first to the emptiest file."""
    total = sum(tensor.plan.size_bytes for tensor in tensors.values())
    count = max(1, min(-(-total // PART_BYTES), len(tensors)))
    parts: list[list[LazyTensor]] = [[] for _ in range(count)]
    filled = [0] * count
    for tensor in sorted(tensors.values(), key=lambda tensor: -tensor.plan.size_bytes):
        emptiest = filled.index(min(filled))
        parts[emptiest].append(tensor)
        filled[emptiest] += tensor.plan.size_bytes
    return parts


def write_parts(
    folder: Path, tensors: dict[str, LazyTensor], count: Count, workers: int | None = None
) -> None:
    """Write `part0.safetensors`, ... and the map of names into the new folder `folder`."""
    folder.mkdir()
    weight_map: dict[str, str] = {}
    jobs = []
    for index, part in enumerate(plan_parts(tensors)):
        name = f"part{index}.safetensors"
        jobs.append(partial(_write, folder / name, sorted(part, key=_place_in_file), UNIFIED_METADATA))
        weight_map |= {tensor.plan.name: name for tensor in part}
    run_all(jobs, count, workers)
    total = sum(tensor.plan.size_bytes for tensor in tensors.values())
    told = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / NAME_MAP).write_text(json.dumps(told, indent=4), encoding="utf-8")


def _place_in_file(tensor: LazyTensor) -> tuple[int, str]:
    """Sort as the safetensors library does: by alignment, then by name. So files equal MindSpore's."""
    return -LIBRARY_ORDER.index(tensor.plan.dtype), tensor.plan.name


def _write(path: Path, tensors: list[LazyTensor], metadata: dict[str, str], count: Count) -> None:
    write_safetensors(path, [(tensor.plan, tensor.pieces(count)) for tensor in tensors], metadata)
