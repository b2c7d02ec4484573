"""Which of the replicas that hold one slice of a tensor writes it: mindformers' `remove_redundancy`.

Replicas share out the writing so that each has about as many bytes to write. Shards of one replica each write
what tensor parallelism does not cut, which are norms: so a rank finds all its slices in the files of its own
replicas, and the few more bytes do not count.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from qwen3_model.checkpoints.strategy import TensorLayout
from qwen3_model.config import Qwen3Config
from qwen3_model.ranks.layout import Layout
from qwen3_train.checkpoints.strategy_files import stage_tensors
from qwen3_train.settings.lora import LoraSettings

F32_BYTES = 4
Sizes = Mapping[str, tuple[TensorLayout, int]]
"""How each tensor of a stage is cut, and the elements of a slice."""


def shares_of_stage(tensors: Sizes) -> list[list[str]]:
    """Return the tensors that each local rank of a stage writes.

    Ranks compute the same without a word: the largest slice goes first, to the holder with the least so far.
    """
    (num_devices,) = {layout.num_devices() for layout, _ in tensors.values()}
    shares: list[list[str]] = [[] for _ in range(num_devices)]
    load = [0] * num_devices
    for name, (layout, size) in sorted(tensors.items(), key=lambda item: (-item[1][1], item[0])):
        for holders in _holders(layout):
            writer = min(holders, key=load.__getitem__)
            load[writer] += size
            shares[writer].append(name)
    return shares


def own_share(
    layout: Layout,
    config: Qwen3Config,
    rank: int,
    *,
    offset: Sequence[int],
    shares_moments: bool,
    lora: LoraSettings | None,
) -> set[str]:
    """Return the names of the weights and moments that a rank writes."""
    stage, _, _ = layout.coordinates(rank)
    tensors = stage_tensors(layout, config, stage, offset=offset, shares_moments=shares_moments, lora=lora)
    return set(shares_of_stage(tensors)[rank % (layout.dp * layout.tp)])


def checkpoint_bytes(
    layout: Layout,
    config: Qwen3Config,
    *,
    offset: Sequence[int],
    shares_moments: bool,
    lora: LoraSettings | None,
    shares_writing: bool,
) -> int:
    """Return the bytes of weights and moments that all ranks together write for one checkpoint."""
    total = 0
    for stage in range(layout.pp):
        tensors = stage_tensors(
            layout, config, stage, offset=offset, shares_moments=shares_moments, lora=lora
        )
        for cut, size in tensors.values():
            writers = layout.tp * cut.optimizer_pieces() if shares_writing else cut.num_devices()
            total += size * writers
    return total * F32_BYTES


@lru_cache(maxsize=64)
def _holders(layout: TensorLayout) -> list[list[int]]:
    """Return, for each slice and shard, the local ranks of the replicas that hold it."""
    found: dict[object, list[int]] = {}
    for local in range(layout.num_devices()):
        found.setdefault((layout.slice_of(local), local % layout.dev_matrix[-1]), []).append(local)
    return list(found.values())
