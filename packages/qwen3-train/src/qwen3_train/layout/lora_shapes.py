"""Which modules carry LoRA adapters, and how large they are: A (rank, inputs) and B (outputs, rank)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout, placement
from qwen3_train.layout.stages import stage_names

# mindformers' fused modules and what they are here.
FUSED = {
    "word_embeddings": ("embed_tokens",),
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
FUSED_NAME = {leaf: fused for fused, leaves in FUSED.items() for leaf in leaves}
EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True, slots=True)
class Adapters:
    """Which modules carry an adapter of which rank."""

    rank: int
    target_modules: str
    """A pattern for the beginning of a module's name or path, ours or mindformers'."""


def adapter_shapes(
    config: Qwen3Config, layout: Layout, offset: Sequence[int], stage: int, adapters: Adapters
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a stage's adapters on one tensor-parallel shard, under PEFT's names.

    The half that touches the split dimension of its weight is split with it, the other half is whole.

    Raises:
        ConfigError: No module matches `target_modules`.
    """
    full = config.weight_shapes()
    wanted = set(target_modules(config, adapters.target_modules))
    shapes: dict[str, tuple[int, ...]] = {}
    for name in stage_names(config, layout.pp, offset, stage):
        path = name.removesuffix(".weight")
        if path not in wanted:
            continue
        (outputs, inputs), (out_axis, in_axis) = full[name], placement(name)
        if path == EMBEDDING:
            # An embedding maps a row's number to its width.
            (outputs, inputs), (out_axis, in_axis) = (inputs, outputs), (in_axis, out_axis)
        shapes[f"{path}.lora_A.weight"] = (adapters.rank, inputs // (layout.tp if in_axis else 1))
        shapes[f"{path}.lora_B.weight"] = (outputs // (layout.tp if out_axis else 1), adapters.rank)
    return shapes


def target_modules(config: Qwen3Config, pattern: str) -> list[str]:
    """Return the paths of the modules that `pattern` means, in the model's order.

    Each alternative of the pattern must mean one at least. It is compared, from the beginning, with a
    module's name here (`q_proj`), with mindformers' name for it (`linear_qkv`) and with its path.

    Raises:
        ConfigError: The pattern is malformed, or an alternative means nothing that can carry an adapter.
    """
    paths = [name.removesuffix(".weight") for name in config.weight_shapes()]
    able = [path for path in paths if path.rpartition(".")[2] in FUSED_NAME]
    found: set[str] = set()
    for part in _alternatives(pattern):
        try:
            wanted = re.compile(part)
        except re.error as error:
            raise ConfigError(
                f"pet_config.target_modules={pattern!r} is no regular expression: {error}"
            ) from None
        matched = {path for path in able if _matches_module(wanted, path)}
        if not matched:
            unable = sorted({path.rpartition(".")[2] for path in paths if _matches_module(wanted, path)})
            known = ", ".join((*FUSED, *FUSED_NAME))
            fault = (
                f"means {', '.join(unable)}, which cannot carry an adapter" if unable else "matches nothing"
            )
            raise ConfigError(f"pet_config.target_modules: {part!r} {fault}; modules that can are {known}")
        found |= matched
    return [path for path in able if path in found]


def _matches_module(wanted: re.Pattern[str], path: str) -> bool:
    leaf = path.rpartition(".")[2]
    names = (leaf, FUSED_NAME.get(leaf, leaf), path)
    return any(wanted.match(name) for name in names)


def _alternatives(pattern: str) -> list[str]:
    """Cut a pattern at each `|` that is not inside of brackets."""
    parts, depth = [""], 0
    for letter in pattern:
        depth += (letter in "([") - (letter in ")]")
        if letter == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
