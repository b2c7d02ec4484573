"""Which layers and weights each pipeline stage holds, and how much of them each rank; free of MindSpore."""

import math
from collections.abc import Sequence
from functools import lru_cache

from qwen3_model.config import Qwen3Config
from qwen3_model.ranks.layout import Layout, shard_slices

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
PAIR_BUFFER_MIB = 32
"""Each of HCCL's two buffers of a group of two stages, which hand over a micro-batch's hidden states."""


def stage_layers(num_layers: int, pp: int, offset: Sequence[int]) -> list[range]:
    """Return the decoder layers of each stage: `num_layers // pp`, shifted by mindformers' `offset`.

    Args:
        num_layers: Layers of the model.
        pp: Number of stages.
        offset: One shift per stage, or nothing for no shift. `checks` says what must hold.
    """
    layers, first = [], 0
    for shift in offset or (0,) * pp:
        count = num_layers // pp + shift
        layers.append(range(first, first + count))
        first += count
    return layers


def balanced_offset(num_layers: int, pp: int) -> tuple[int, ...]:
    """Return the offset that spreads the layers evenly; inner stages get one more first."""
    rest = num_layers % pp
    if rest == 0:
        return ()
    inner_first = sorted(range(pp), key=lambda stage: (stage in (0, pp - 1), stage))
    return tuple(int(stage in inner_first[:rest]) for stage in range(pp))


def stage_weights(
    config: Qwen3Config, layout: Layout, offset: Sequence[int], stage: int
) -> dict[str, tuple[int, ...]]:
    """Return the names of a stage's weights with the shape that one tensor-parallel shard holds.

    The embedding is on the first stage, norm and head on the last; a tied embedding is on both of them.
    All shards hold equal shapes, since every split dimension divides.

    Raises:
        ConfigError: A weight does not divide by the tensor-parallel degree.
    """
    return {
        name: _local_shapes(config, layout.tp)[name] for name in stage_names(config, layout.pp, offset, stage)
    }


def stage_names(config: Qwen3Config, pp: int, offset: Sequence[int], stage: int) -> list[str]:
    """Return the names of a stage's weights in the model's order."""
    layers = stage_layers(config.num_layers, pp, offset)[stage]
    is_last = stage == pp - 1
    names = [EMBEDDING] if stage == 0 or (is_last and config.tie_word_embeddings) else []
    for layer in layers:
        names += config.layer_weight_shapes(layer)
    if is_last:
        names.append(NORM)
        if not config.tie_word_embeddings:
            names.append(HEAD)
    return names


def is_shared_out(shape: tuple[int, ...], num_replicas: int) -> bool:
    """Return whether the moments of a weight are cut, of `shape` on this rank."""
    return num_replicas > 1 and math.prod(shape) % num_replicas == 0


def is_cut_by_rows(shape: tuple[int, ...], num_replicas: int) -> bool:
    """Return whether each replica's moments of a weight are rows of it, as strategy files can say it.

    Else they are cut by elements, in the order in which they lie in memory, and checkpoints have them whole.
    """
    return num_replicas > 1 and shape[0] % num_replicas == 0


def piece_shape(shape: tuple[int, ...], num_replicas: int) -> tuple[int, ...]:
    """Return the shape of a replica's moments of a weight: rows, one row of elements, or all of it."""
    if is_cut_by_rows(shape, num_replicas):
        return (shape[0] // num_replicas, *shape[1:])
    return (1, math.prod(shape) // num_replicas) if is_shared_out(shape, num_replicas) else shape


@lru_cache(maxsize=64)
def _local_shapes(config: Qwen3Config, tp: int) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, shape in config.weight_shapes().items():
        slices = shard_slices(name, shape, tp=tp, shard=0)
        shapes[name] = tuple(part.stop - part.start for part in slices)
    return shapes
