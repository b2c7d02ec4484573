"""A checkpoint of the run's own layout: each rank reads its own file, and of others only what it lacks.

So the files that a job opens grow with its ranks, and not with their square. Where replicas send each other
what they have read (`one_reader`), a rank opens its own file alone. Else it opens, of a checkpoint whose
writing was shared, those of the replicas that have written the rest of its slices.
"""

from collections.abc import Iterable, Iterator, Mapping

from qwen3_model.checkpoints.rank_tensors import cut_of, strategy_path
from qwen3_model.checkpoints.rows import LazyTensor, from_file
from qwen3_model.checkpoints.strategy import TensorLayout, read_strategy
from qwen3_train.checkpoints.source import ResumeSource
from qwen3_train.checkpoints.strategy_files import rank_layouts
from qwen3_train.settings.run import TrainSettings


def open_own_slices(source: ResumeSource, settings: TrainSettings, rank: int) -> dict[str, LazyTensor] | None:
    """Return what a rank has of each weight and moment; None where the run that wrote it was cut otherwise.

    Raises:
        FormatError: A file is damaged.
    """
    cuts = own_cuts(source, settings, rank)
    return None if cuts is None else find_slices(source, cuts, cuts, rank)


def own_cuts(source: ResumeSource, settings: TrainSettings, rank: int) -> dict[str, TensorLayout] | None:
    """Return how a rank's weights and moments are cut; None where those of the checkpoint are cut otherwise.

    Raises:
        FormatError: The strategy file is damaged.
    """
    path = strategy_path(source.run_dir, rank)
    if source.merged is not None or source.strategy is not None or rank not in source.files:
        return None
    if len(source.files) != settings.layout.num_ranks or not path.is_file():
        return None
    wanted = rank_layouts(
        settings.layout, settings.model, rank, offset=settings.offset,
        shares_moments=settings.parallel_optimizer, lora=settings.lora,
    )  # fmt: skip
    found = read_strategy(path)
    if found[0] != wanted[0] or found[1].keys() != wanted[1].keys():
        return None
    if any(cut_of(found[1][name], rank) != cut_of(cut, rank) for name, cut in wanted[1].items()):
        return None
    return wanted[1]


def find_slices(
    source: ResumeSource, cuts: Mapping[str, TensorLayout], names: Iterable[str], rank: int
) -> dict[str, LazyTensor] | None:
    """Return a rank's slices of `names`, of its own file where it has them; None where no file has one.

    Raises:
        FormatError: A file is damaged.
    """
    tensors = {}
    for name in names:
        if name not in cuts:
            return None
        devices = cuts[name].num_devices()
        first, local = rank - rank % devices, rank % devices
        for number in (first + holder for holder in _holders(cuts[name], local)):
            if name in source.files[number].tensors:
                tensors[name] = from_file(source.files[number], name)
                break
        else:
            return None  # whoever puts the tensors together says what is missing
    return tensors


def _holders(cut: TensorLayout, local: int) -> Iterator[int]:
    """Yield the local ranks that hold the slice of `local`: itself, its replicas, then other shards."""
    own, tp = cut.slice_of(local), cut.dev_matrix[-1]
    same = [other for other in range(cut.num_devices()) if cut.slice_of(other) == own]
    yield from sorted(same, key=lambda other: (other != local, other % tp != local % tp))
