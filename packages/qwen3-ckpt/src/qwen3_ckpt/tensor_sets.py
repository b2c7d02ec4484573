"""What a user points at, as tensors: a distributed or merged checkpoint, a Hugging Face folder, a file."""

from pathlib import Path

from qwen3_ckpt.assemble import assemble, without_strategy
from qwen3_ckpt.convert import find_weights, open_weights
from qwen3_ckpt.rank_files import RANK_DIR, open_rank_files
from qwen3_ckpt.rows import LazyTensor
from qwen3_ckpt.strategies import read_stages


def open_tensors(source: Path, suffix: str | None = None) -> dict[str, LazyTensor]:
    """Return the whole tensors of `source`.

    A distributed checkpoint is a folder with rank_0, ... or a run folder with `checkpoint` and `strategy`.

    Raises:
        Qwen3Error: Nothing is there, or it is damaged or incomplete.
    """
    ranks_dir = rank_parent(source)
    if ranks_dir is None:
        return open_weights(find_weights(source))
    ranks = open_rank_files(ranks_dir, suffix)
    strategy_dir = ranks_dir.parent / "strategy"
    if len(ranks.files) == 1 and not strategy_dir.is_dir():
        return without_strategy(ranks).tensors
    stages, _ = read_stages(strategy_dir)
    return assemble(ranks, stages).tensors


def rank_parent(source: Path) -> Path | None:
    """Return the folder at or directly below `source` that holds rank folders, or None."""
    if not source.is_dir():
        return None
    for folder in (source, source / "checkpoint"):
        if folder.is_dir() and any(RANK_DIR.fullmatch(path.name) for path in folder.iterdir()):
            return folder
    return None
