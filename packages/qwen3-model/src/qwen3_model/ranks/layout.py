"""Where each weight lives on a grid of devices: the table behind sharding, strategy files and plans."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from qwen3_model.errors import ConfigError

# Pattern to the axis that splits each dimension; every weight matches exactly one row.
PLACEMENT: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("model.embed_tokens.weight", ("tp", None)),
    ("lm_head.weight", ("tp", None)),
    ("*.self_attn.[qkv]_proj.weight", ("tp", None)),
    ("*.self_attn.o_proj.weight", (None, "tp")),
    ("*.mlp.gate_proj.weight", ("tp", None)),
    ("*.mlp.up_proj.weight", ("tp", None)),
    ("*.mlp.down_proj.weight", (None, "tp")),
    ("*norm.weight", (None,)),
    # Adapters: the half that touches the split dimension is split with it. An embedding's A has (r, rows).
    ("model.embed_tokens.lora_A.weight", (None, "tp")),
    ("*.[qkvug]*_proj.lora_A.weight", (None, None)),
    ("*.[od]*_proj.lora_A.weight", (None, "tp")),
    ("lm_head.lora_A.weight", (None, None)),
    ("model.embed_tokens.lora_B.weight", (None, None)),
    ("*.[qkvug]*_proj.lora_B.weight", ("tp", None)),
    ("*.[od]*_proj.lora_B.weight", (None, None)),
    ("lm_head.lora_B.weight", ("tp", None)),
)


def placement(name: str) -> tuple[str | None, ...]:
    """Return, for each dimension of the weight `name`, the axis that splits it, or None.

    Raises:
        ConfigError: `name` is not a weight of the model.
    """
    hits = [axes for pattern, axes in PLACEMENT if fnmatchcase(name, pattern)]
    if len(hits) != 1:
        raise ConfigError(f"{name} matches {len(hits)} placement rules, expected exactly 1")
    return hits[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A grid of `pp` stages x `dp` replicas x `tp` shards; rank = (stage * dp + replica) * tp + shard.

    With context parallelism `cp` neighbouring replicas take parts of the same samples.
    """

    dp: int = 1
    """Replicas of each weight: data_parallel x context_parallel."""
    cp: int = 1
    """Replicas that share a sample, each with its part of the sequence."""
    tp: int = 1
    """Tensor-parallel shards of each weight."""
    pp: int = 1
    """Pipeline stages."""
    sequence_parallel: bool = False
    """Split activations between tensor-parallel regions along the sequence."""

    def __post_init__(self) -> None:
        for axis in ("dp", "tp", "pp"):
            if getattr(self, axis) < 1:
                raise ConfigError(f"layout: {axis}={getattr(self, axis)} must be at least 1")
        if self.cp < 1 or self.dp % self.cp:
            raise ConfigError(f"layout: cp={self.cp} must be at least 1 and divide dp={self.dp}")

    @property
    def num_ranks(self) -> int:
        """Devices in the grid."""
        return self.dp * self.tp * self.pp

    @property
    def data_parallel(self) -> int:
        """Ranks, or groups of `cp` ranks, that take samples of their own."""
        return self.dp // self.cp

    def rank(self, *, stage: int, replica: int, shard: int) -> int:
        """Return the rank with these coordinates, in MindSpore's own order."""
        return (stage * self.dp + replica) * self.tp + shard

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """Return (stage, replica, shard) of `rank`."""
        group, shard = divmod(rank, self.tp)
        stage, replica = divmod(group, self.dp)
        return stage, replica, shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The part of the model that a pipeline stage has."""

    layers: range
    """Numbers of its decoder layers."""
    is_first: bool = True
    """It has the embedding."""
    is_last: bool = True
    """It has the last norm and the head, and of a tied head a copy of the embedding."""


def shard_slices(name: str, shape: tuple[int, ...], *, tp: int, shard: int) -> tuple[slice, ...]:
    """Return the part of the full weight `name` of `shape` that tensor-parallel rank `shard` of `tp` holds.

    Raises:
        ConfigError: The split dimension does not divide by `tp`.
    """
    slices = []
    for dim, (size, axis) in enumerate(zip(shape, placement(name), strict=True)):
        if axis != "tp":
            slices.append(slice(0, size))
            continue
        if size % tp:
            raise ConfigError(f"{name}: dimension {dim} of {size} does not divide by model_parallel={tp}")
        slices.append(slice(shard * size // tp, (shard + 1) * size // tp))
    return tuple(slices)


def whole_shape(name: str, shape: tuple[int, ...], tp: int) -> tuple[int, ...]:
    """Return the shape of the full weight `name`, of which a tensor-parallel rank of `tp` holds `shape`."""
    axes = placement(name)
    return tuple(size * tp if axis == "tp" else size for size, axis in zip(shape, axes, strict=True))
