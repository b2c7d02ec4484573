"""Weights wherever they are: a run of any layout, a merged checkpoint, a Hugging Face folder, one file."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qwen3_model.checkpoints.checkpoint_files import NAME, RANK_DIR, RankFiles, open_rank_files
from qwen3_model.checkpoints.hf_folder import INDEX_FILE, SINGLE_FILE, open_hf_tensors
from qwen3_model.checkpoints.iteration_files import (
    COMMON,
    METADATA,
    find_iteration,
    open_iteration,
    run_state_of,
    suffix_of,
)
from qwen3_model.checkpoints.rank_tensors import assemble, strategy_of
from qwen3_model.checkpoints.rows import LazyTensor, from_file
from qwen3_model.checkpoints.safetensors_file import SafetensorsFile, open_safetensors
from qwen3_model.checkpoints.source_file import SourceFile, open_source
from qwen3_model.checkpoints.strangers import WANTED, explain
from qwen3_model.checkpoints.strategies import Stages, read_stages, strategy_files
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.command.files import is_file_name
from qwen3_model.command.json_file import read_json
from qwen3_model.command.narrow import as_section, as_text, at_key
from qwen3_model.command.small_files import INDEX_BYTES
from qwen3_model.errors import ConfigError, FormatError

NAME_MAP = "param_name_map.json"
"""Beside the parts of a merged checkpoint: which tensor is in which."""
HYPER = "hyper_param.safetensors"
"""Beside them, too: the scalars of the run."""
ADAPTER_FILE = "adapter_model.safetensors"
MERGED_DIR = re.compile(r"(\d+_\d+)_ckpt_convert")
FIRST_SUFFIX = "1_1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Whole tensors and what goes with them."""

    path: Path
    """Where they were found."""
    first: SafetensorsFile
    """A file of them, for what its metadata say."""
    tensors: dict[str, LazyTensor]
    """Weights and optimizer state."""
    run_state: dict[str, LazyTensor] = field(default_factory=dict)
    """Scalars of the run, such as global_step."""
    suffix: str = FIRST_SUFFIX
    """Epoch and step, `E_S`; 1_1 where nothing states it."""
    notes: tuple[str, ...] = ()
    """What a reader should know, such as steps that were passed over."""
    ranks: RankFiles | None = None
    """The ranks' files, of a distributed checkpoint."""
    stages: Stages = field(default_factory=dict)
    """How its tensors were cut."""
    strategy: Path | None = None
    """Where that is said."""
    stage_twins: tuple[tuple[LazyTensor, LazyTensor], ...] = ()
    """Tensors that two of its stages hold."""
    small_files: tuple[SourceFile, ...] = ()
    """What was read besides: an index or a map of names."""

    def sources(self) -> list[SourceFile]:
        """Return every file that the tensors come from."""
        tensors = (*self.tensors.values(), *self.run_state.values())
        found = {id(file): file.source for tensor in tensors for file, _ in tensor.rows.files()}
        found |= {id(file): file.source for file in (self.ranks.files.values() if self.ranks else ())}
        return [*found.values(), *self.small_files]


def open_weight_files(source: Path, strategy: Path | None = None) -> Tensors:
    """Open the weights at `source`, to be read into memory; see `open_checkpoint`."""
    opened = open_checkpoint(source, strategy=strategy)
    return Tensors(opened.first, opened.tensors | opened.run_state)


def open_checkpoint(source: Path, *, suffix: str | None = None, strategy: Path | None = None) -> Checkpoint:
    """Open what is at `source`; nothing but headers is read.

    Args:
        source: A run's folder or its `checkpoint` folder, a file of a rank in it (that step), a merged
            checkpoint or a folder above it, mindformers' `iteration_N`, a Hugging Face folder, an adapter's,
            or a file.
        suffix: Step of a distributed checkpoint, `E_S`; the newest that is whole on every rank by default.
        strategy: Strategy files of a distributed checkpoint that are not beside it: their folder, or the
            file that merges them.

    Raises:
        ConfigError: There is nothing, or no step is whole, or a strategy file is missing.
        FormatError: A file is damaged, or files and strategies do not fit.
        WeightError: Tensors are incomplete, or ranks disagree; see `assemble`.
    """
    if not source.exists():
        raise ConfigError(f"{source} does not exist; give a run, a checkpoint or a folder with weights")
    if source.is_file():
        match = NAME.fullmatch(source.name)
        if match and RANK_DIR.fullmatch(source.parent.name):
            step = f"{match['epoch']}_{match['step']}"
            return _open_distributed(source.parent.parent, step, strategy)
        return _open_files(source, [open_safetensors(source)])
    if ranks_dir := rank_parent(source):
        return _open_distributed(ranks_dir, suffix, strategy)
    if any((source / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        files = open_hf_tensors(source)
        small = [open_source(source / INDEX_FILE)] if (source / INDEX_FILE).is_file() else []
        tensors = {name: from_file(file, name) for name, file in files.items()}
        return Checkpoint(
            path=source, first=next(iter(files.values())), tensors=tensors, small_files=tuple(small)
        )
    if (source / ADAPTER_FILE).is_file():
        return _open_files(source, [open_safetensors(source / ADAPTER_FILE)])
    if folder := find_iteration(source):
        return _open_iteration(folder)
    return _open_merged(source)


def is_distributed(source: Path) -> bool:
    """Return whether a folder holds `rank_0`, ..., itself or in its `checkpoint` folder."""
    return rank_parent(source) is not None


def is_no_model_folder(source: Path) -> bool:
    """Return whether a folder holds weights in another form than a Hugging Face model folder."""
    if any((source / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        return False
    merged = any(found for depth in ("", "*/", "*/*/") for found in source.glob(f"{depth}{NAME_MAP}"))
    return merged or is_distributed(source) or (source / ADAPTER_FILE).is_file()


def rank_parent(source: Path) -> Path | None:
    """Return the folder at or directly below `source` that holds rank folders, or None."""
    for folder in (source, source / "checkpoint"):
        if folder.is_dir() and any(RANK_DIR.fullmatch(path.name) for path in folder.iterdir()):
            return folder
    return None


def _open_distributed(ranks_dir: Path, suffix: str | None, strategy: Path | None) -> Checkpoint:
    ranks = open_rank_files(ranks_dir, suffix)
    strategy = strategy_of(ranks.files, strategy)
    small = tuple(open_source(path) for path in (strategy_files(strategy) if strategy else ()))
    stages, notes = read_stages(strategy) if strategy else ({}, [])
    whole = assemble(ranks.files, stages)
    first = ranks.files[min(ranks.files)]
    return Checkpoint(
        path=ranks_dir, first=first, tensors=whole.tensors, run_state=whole.run_state,
        suffix=str(ranks.step), notes=(*ranks.notes, *whole.notes, *notes), ranks=ranks, stages=stages,
        strategy=strategy, stage_twins=tuple(whole.stage_twins), small_files=small,
    )  # fmt: skip


def _open_iteration(folder: Path) -> Checkpoint:
    small = tuple(open_source(path) for name in (METADATA, COMMON) if (path := folder / name).is_file())
    tensors, files = open_iteration(folder)
    return Checkpoint(
        path=folder,
        first=files[0],
        tensors=tensors,
        run_state=run_state_of(folder),
        suffix=suffix_of(folder),
        small_files=small,
    )


def _open_files(path: Path, files: Iterable[SafetensorsFile]) -> Checkpoint:
    files = list(files)
    tensors = {name: from_file(file, name) for file in files for name in file.tensors}
    return Checkpoint(path=path, first=files[0], tensors=tensors)


def _open_merged(source: Path) -> Checkpoint:
    """Open the one merged checkpoint in `source` or up to two folders below it."""
    maps = [path for depth in ("", "*/", "*/*/") for path in sorted(source.glob(f"{depth}{NAME_MAP}"))]
    if len(maps) > 1:
        raise ConfigError(
            f"{source} holds several: {', '.join(str(path.parent) for path in maps)}; give one of them"
        )
    if not maps:
        found = explain(source) or f"has no {SINGLE_FILE}, {NAME_MAP} or rank_0; {WANTED}"
        raise ConfigError(f"{source} {found}")
    folder = maps[0].parent
    small = open_source(maps[0])
    files = _open_named(maps[0])
    hyper = open_safetensors(folder / HYPER) if (folder / HYPER).is_file() else None
    steps = [match[1] for part in folder.absolute().parts if (match := MERGED_DIR.fullmatch(part))]
    return Checkpoint(
        path=folder,
        first=next(iter(files.values())),
        tensors={name: from_file(file, name) for name, file in files.items()},
        run_state={name: from_file(hyper, name) for name in hyper.tensors} if hyper else {},
        suffix=steps[-1] if steps else FIRST_SUFFIX,
        small_files=(small,),
    )


def _open_named(path: Path) -> dict[str, SafetensorsFile]:
    folder = path.parent
    index = read_json(path, INDEX_BYTES)
    try:
        stated = at_key(index, "weight_map", as_section) if "weight_map" in index else index
        weight_map = {tensor: at_key(stated, tensor, as_text) for tensor in stated}
    except FormatError as error:
        raise FormatError(f"{path} is no map of names to files: {error}") from None
    names = sorted(set(weight_map.values()))
    if not weight_map:
        raise FormatError(f"{path} lists no tensor")
    absent = [name for name in names if not is_file_name(name) or not (folder / name).is_file()]
    if absent:
        raise FormatError(f"{path} names files that are not there: {', '.join(absent)}")
    files = {name: open_safetensors(folder / name) for name in names}
    lost = [tensor for tensor, name in weight_map.items() if tensor not in files[name].tensors]
    if lost:
        raise FormatError(f"{path} places tensors in files that lack them: {', '.join(lost[:8])}")
    stray = [t for name, file in files.items() for t in file.tensors if weight_map.get(t) != name]
    if stray:
        raise FormatError(f"{path} does not list, or lists elsewhere: {', '.join(stray[:8])}")
    return {tensor: files[name] for tensor, name in weight_map.items()}
