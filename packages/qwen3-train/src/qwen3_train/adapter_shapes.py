"""Sizes of LoRA adapters, for the planner: the pairs A (rank, inputs) and B (outputs, rank) per target."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.layout import Layout, placement
from qwen3_train.stages import stage_names

# mindformers' fused modules and what they are here.
FUSED = {
    "word_embeddings": ("embed_tokens",),
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}


@dataclass(frozen=True, slots=True)
class Adapters:
    """Which modules carry an adapter of which rank."""

    rank: int
    target_modules: str
    """A pattern for the beginning of a module's name, ours or mindformers'."""


def adapter_shapes(
    config: Qwen3Config, layout: Layout, offset: Sequence[int], stage: int, adapters: Adapters
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a stage's adapters on one tensor-parallel shard, under PEFT's names.

    The half that touches the split dimension of its weight is split with it, the other half is whole.

    Raises:
        ConfigError: No module matches `target_modules`.
    """
    leaves = target_leaves(adapters.target_modules)
    full = config.weight_shapes()
    shapes: dict[str, tuple[int, ...]] = {}
    for name in stage_names(config, layout.pp, offset, stage):
        path = name.removesuffix(".weight")
        if path.rpartition(".")[2] not in leaves or len(full[name]) != 2:
            continue
        (outputs, inputs), (out_axis, in_axis) = full[name], placement(name)
        shapes[f"{path}.lora_A.weight"] = (adapters.rank, inputs // (layout.tp if in_axis else 1))
        shapes[f"{path}.lora_B.weight"] = (outputs // (layout.tp if out_axis else 1), adapters.rank)
    return shapes


def target_leaves(pattern: str) -> set[str]:
    """Return our names of the modules that `pattern` matches at their beginning.

    Raises:
        ConfigError: The pattern is malformed or matches nothing.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"pet_config.target_modules={pattern!r} is no regular expression: {error}"
        ) from None
    leaves = {
        leaf for fused, parts in FUSED.items() for leaf in parts if wanted.match(fused) or wanted.match(leaf)
    }
    if not leaves:
        known = sorted(FUSED) + sorted(leaf for parts in FUSED.values() for leaf in parts)
        raise ConfigError(f"pet_config.target_modules={pattern!r} matches none of {', '.join(known)}")
    return leaves
