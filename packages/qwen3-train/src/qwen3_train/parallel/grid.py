"""This rank's coordinates and the groups in which it exchanges."""

from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from qwen3_model.config import Qwen3Config
from qwen3_model.ranks.collectives import Alone, Group, Link, make_group, make_link
from qwen3_model.ranks.layout import Layout, Part, placement
from qwen3_model.ranks.shards import Shards, Tp, Whole
from qwen3_train.layout.stages import PAIR_BUFFER_MIB, stage_layers

NUM_VALUES = 8
"""Length of every sum of values for the host: one graph is compiled for all of them."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A rank's coordinates, its groups and its neighbours in the pipeline."""

    layout: Layout
    rank: int
    part: Part
    """What of the model its stage holds."""
    tp: Tp
    replicas: Group
    """Ranks that hold the same weights and take other samples, or other parts of them."""
    context: Group
    """The replicas that take parts of the same samples; else this rank alone."""
    world: Group
    ends: Group
    """First and last stage, where a tied embedding is on both; else this rank alone."""
    before: Link | None
    """Link to the stage before; None on the first."""
    after: Link | None

    @property
    def stage(self) -> int:
        """Pipeline stage, from 0."""
        return self.layout.coordinates(self.rank)[0]

    @property
    def replica(self) -> int:
        """Replica, from 0, of those that hold the same weights."""
        return self.layout.coordinates(self.rank)[1]

    @property
    def shard(self) -> int:
        """Tensor-parallel shard, from 0."""
        return self.layout.coordinates(self.rank)[2]

    def counts(self, name: str, *, is_cut: bool = False) -> bool:
        """Return whether this rank counts what it has of the weight `name` in sums over all ranks.

        Each is counted once; where `is_cut`, each replica counts rows of its own.
        """
        if self.replica != 0 and not is_cut:
            return False
        if "tp" not in placement(name) and self.shard != 0:
            return False
        return self.ends.index == 0 or "embed_tokens" not in name

    def has_loss(self) -> bool:
        """Return whether this rank counts its replica's loss."""
        return self.part.is_last and self.shard == 0


def single_grid(config: Qwen3Config) -> Grid:
    """Return the grid of one process."""
    alone = Alone()
    return Grid(
        layout=Layout(), rank=0, part=Part(layers=range(config.num_layers)), tp=Whole(), replicas=alone,
        context=alone, world=alone, ends=alone, before=None, after=None,
    )  # fmt: skip


def make_grid(
    device_target: str, config: Qwen3Config, layout: Layout, offset: tuple[int, ...], rank: int
) -> Grid:
    """Meet the other ranks, which all call this, after MindSpore's `init`."""
    if layout.num_ranks == 1:
        return single_grid(config)
    stage, replica, shard = layout.coordinates(rank)
    last = layout.pp - 1

    def ranks(stages: range, replicas: range, shards: range) -> list[int]:
        return [layout.rank(stage=s, replica=r, shard=t) for s in stages for r in replicas for t in shards]

    def group(kind: str, members: list[int], buffer_mib: int | None = None) -> Group:
        # Ranks of a group lie equally far apart, so these say which; a process may have had other grids.
        name = f"{kind}_{members[0]}_{members[-1]}_{len(members)}"
        is_world = len(members) == layout.num_ranks
        return make_group(device_target, name, members, rank, is_world=is_world, buffer_mib=buffer_mib)

    def link(upper: int) -> Link:
        pair = [layout.rank(stage=s, replica=replica, shard=shard) for s in (upper - 1, upper)]
        return make_link(device_target, f"link_{pair[0]}_{pair[1]}", pair, rank, PAIR_BUFFER_MIB)

    # Every rank makes its groups in this order, so that nobody waits in a circle.
    tp_group = group("tp", ranks(range(stage, stage + 1), range(replica, replica + 1), range(layout.tp)))
    replicas = group("dp", ranks(range(stage, stage + 1), range(layout.dp), range(shard, shard + 1)))
    context, first = replicas, replica - replica % layout.cp
    if layout.cp < layout.dp:
        own = ranks(range(stage, stage + 1), range(first, first + layout.cp), range(shard, shard + 1))
        context = group("cp", own)
    before = link(stage) if stage > 0 else None
    after = link(stage + 1) if stage < last else None
    ends: Group = Alone()
    if config.tie_word_embeddings and last > 0 and stage in (0, last):
        pair = [layout.rank(stage=s, replica=replica, shard=shard) for s in (0, last)]
        ends = group("ends", pair, PAIR_BUFFER_MIB)
    world = group("world", list(range(layout.num_ranks)))
    layers = stage_layers(config.num_layers, layout.pp, offset)[stage]
    return Grid(
        layout=layout,
        rank=rank,
        part=Part(layers=layers, is_first=stage == 0, is_last=stage == last),
        tp=Whole() if layout.tp == 1 else Shards(tp_group, sequence_parallel=layout.sequence_parallel),
        replicas=replicas,
        context=context,
        world=world,
        ends=ends,
        before=before,
        after=after,
    )


class WorldSum(nn.Cell):
    """Add up a vector over all ranks, or those of another group, for the host."""

    def __init__(self, world: Group) -> None:
        super().__init__(auto_prefix=False)
        self.world = world

    @ms.jit
    def construct(self, x: Tensor) -> Tensor:
        return self.world.sum(x)

    def add(self, *values: float) -> list[float]:
        """Return the float32 sum of each value, NUM_VALUES at most, over the ranks, which all wait here."""
        if self.world.size == 1:
            return list(values)
        padded_N = np.zeros(NUM_VALUES, np.float32)
        padded_N[: len(values)] = values
        return [float(total) for total in self.add_array(padded_N)[: len(values)]]

    def add_array(self, values_N: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the sum of an array over the ranks; one graph is compiled for each length."""
        total: NDArray[np.float32] = self(Tensor(values_N)).asnumpy()
        return total
