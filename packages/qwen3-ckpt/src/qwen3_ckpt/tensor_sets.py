"""Whatever a user points at, as tensors: distributed or merged checkpoints, Hugging Face folders, files."""

import re
from dataclasses import dataclass
from pathlib import Path

from qwen3_ckpt.assemble import assemble, without_strategy
from qwen3_ckpt.convert import find_weights, open_weights
from qwen3_ckpt.rank_files import RANK_DIR, open_rank_files
from qwen3_ckpt.replicas import check_samples
from qwen3_ckpt.rows import LazyTensor, from_file
from qwen3_ckpt.strategies import read_stages
from qwen3_ckpt.unified import HYPER
from qwen3_model.safetensors_file import open_safetensors

MERGED_DIR = re.compile(r"(\d+_\d+)_ckpt_convert")
FIRST_SUFFIX = "1_1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Whole tensors and what goes with them."""

    path: Path
    """Where they were found."""
    tensors: dict[str, LazyTensor]
    """Weights and optimizer state."""
    run_state: dict[str, LazyTensor]
    """Scalars of the run, such as global_step."""
    metadata: dict[str, str]
    """What the files say about the run that wrote them."""
    suffix: str
    """Epoch and step, `E_S`; 1_1 where nothing states it."""
    notes: tuple[str, ...] = ()
    """What a reader should know, such as steps that were passed over."""


def open_checkpoint(source: Path, suffix: str | None = None, strategy: Path | None = None) -> Checkpoint:
    """Open what is at `source`.

    A distributed checkpoint is a folder with rank_0, ... or a run folder with `checkpoint` and `strategy`.

    Raises:
        Qwen3Error: Nothing is there, or it is damaged or incomplete.
    """
    ranks_dir = rank_parent(source)
    if ranks_dir is None:
        folder = find_weights(source)
        return Checkpoint(folder, open_weights(folder), _run_state(folder), {}, suffix or _suffix_of(folder))
    ranks = open_rank_files(ranks_dir, suffix)
    strategy = strategy or ranks_dir.parent / "strategy"
    notes: list[str] = []
    if len(ranks.files) == 1 and not strategy.exists():
        whole = without_strategy(ranks)
    else:
        stages, notes = read_stages(strategy)
        whole = assemble(ranks, stages)
        check_samples(ranks, stages)
    metadata = next(iter(ranks.files.values())).metadata
    return Checkpoint(
        ranks_dir, whole.tensors, whole.run_state, metadata, ranks.suffix, (*whole.notes, *notes)
    )


def open_tensors(source: Path, suffix: str | None = None) -> dict[str, LazyTensor]:
    """Return the whole tensors of `source`; see `open_checkpoint`."""
    return open_checkpoint(source, suffix).tensors


def rank_parent(source: Path) -> Path | None:
    """Return the folder at or directly below `source` that holds rank folders, or None."""
    if not source.is_dir():
        return None
    for folder in (source, source / "checkpoint"):
        if folder.is_dir() and any(RANK_DIR.fullmatch(path.name) for path in folder.iterdir()):
            return folder
    return None


def _run_state(folder: Path) -> dict[str, LazyTensor]:
    if not (folder / HYPER).is_file():
        return {}
    file = open_safetensors(folder / HYPER)
    return {name: from_file(file, name) for name in file.tensors}


def _suffix_of(folder: Path) -> str:
    found = [match[1] for part in folder.absolute().parts if (match := MERGED_DIR.fullmatch(part))]
    return found[-1] if found else FIRST_SUFFIX
