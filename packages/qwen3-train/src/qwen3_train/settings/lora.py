"""The YAML's `pet_config` as checked values: which modules carry adapters and which weights train."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from qwen3_model.command.narrow import as_int, as_list, as_number, as_text
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout, shard_slices
from qwen3_train.layout.lora_shapes import Adapters, adapter_shapes
from qwen3_train.layout.stages import stage_names

SECTION = "model.model_config.pet_config"
INITS = ("normal", "zeros", "ones", "he_uniform", "xavier_uniform", "xavier_normal")
"""The same as in `qwen3_model.network.lora`, which needs MindSpore."""
SPELLINGS = {"zero": "zeros", "one": "ones"}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSettings:
    """Adapters of a run."""

    rank: int
    alpha: float
    """The adapter is scaled by alpha / rank."""
    dropout: float
    """Share of an adapter's inputs that is dropped in training."""
    a_init: str
    b_init: str
    target_modules: str
    """The pattern that chose the modules."""
    modules: tuple[str, ...]
    """Paths of the modules that carry an adapter."""
    trained: Mapping[str, tuple[int, ...]]
    """Names and shapes of the weights that are not frozen."""

    @property
    def num_trained(self) -> int:
        """Trained parameters."""
        total = 0
        for shape in self.trained.values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total


def read_lora(section: Mapping[str, object], config: Qwen3Config) -> LoraSettings:
    """Read the keys of `pet_config`, with mindformers' defaults.

    Raises:
        ConfigError: A value is out of range, or a pattern matches nothing that it could.
    """
    rank, alpha = as_int(section.get("lora_rank", 8)), float(as_number(section.get("lora_alpha", 16)))
    dropout = float(as_number(section.get("lora_dropout", 0.01)))
    problems = []
    if rank < 1:
        problems.append(f"{SECTION}.lora_rank={rank} must be at least 1")
    if not alpha > 0:
        problems.append(f"{SECTION}.lora_alpha={alpha} must be above 0")
    if not 0 <= dropout < 1:
        problems.append(f"{SECTION}.lora_dropout={dropout} must be from 0 to below 1")
    inits = {}
    for key, default in (("lora_a_init", "normal"), ("lora_b_init", "zeros")):
        init = str(section.get(key) or default).lower()
        inits[key] = SPELLINGS.get(init, init)
        if inits[key] not in INITS:
            problems.append(f"{SECTION}.{key}={section[key]!r} is none of {', '.join(INITS)}")
    if inits["lora_a_init"] == inits["lora_b_init"] == "zeros":
        problems.append(f"{SECTION}: with lora_a_init and lora_b_init both zeros nothing would ever train")
    if problems:
        raise ConfigError("; ".join(problems))
    pattern = as_text(section.get("target_modules") or ".*")
    shapes = adapter_shapes(config, Layout(), (), 0, Adapters(rank, pattern))
    return LoraSettings(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        a_init=inits["lora_a_init"],
        b_init=inits["lora_b_init"],
        target_modules=pattern,
        modules=tuple(name.removesuffix(".lora_A.weight") for name in shapes if ".lora_A." in name),
        trained=_find_trained(section, config.weight_shapes() | shapes),
    )


def stage_trained(
    lora: LoraSettings, config: Qwen3Config, layout: Layout, offset: Sequence[int], stage: int
) -> dict[str, tuple[int, ...]]:
    """Return the names of what trains on a stage, with the shape that one tensor-parallel shard holds."""
    own_names = set(stage_names(config, layout.pp, offset, stage))
    local = {}
    for name, shape in lora.trained.items():
        if re.sub(r"\.lora_[AB]\.weight$", ".weight", name) in own_names:
            slices = shard_slices(name, shape, tp=layout.tp, shard=0)
            local[name] = tuple(part.stop - part.start for part in slices)
    return local


def refuse_empty_stages(
    lora: LoraSettings, config: Qwen3Config, layout: Layout, offset: Sequence[int]
) -> None:
    """Raise ConfigError when a pipeline stage has nothing to train."""
    stages = range(layout.pp)
    if empty := [stage for stage in stages if not stage_trained(lora, config, layout, offset, stage)]:
        raise ConfigError(
            f"{SECTION}.target_modules gives the layers of pipeline stage {empty[0]} no adapter, so that "
            "stage would train nothing; adapt modules of every stage or lower pipeline_stage"
        )


def _find_trained(
    section: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    include = _patterns(section, "freeze_include", ["*"], shapes)
    exclude = _patterns(section, "freeze_exclude", ["*lora*"], shapes)
    trained = {
        name: shape
        for name, shape in shapes.items()
        if not _matches_any(name, include) or _matches_any(name, exclude)
    }
    if not any(".lora_" in name for name in trained):
        raise ConfigError(
            f"{SECTION}: freeze_include={include} without freeze_exclude={exclude} freezes the adapters "
            "too; freeze_exclude must have '*lora*'"
        )
    return trained


def _patterns(
    section: Mapping[str, object], key: str, default: Sequence[str], names: Iterable[str]
) -> list[str]:
    value = section.get(key, default)
    patterns = []
    for pattern in [value] if isinstance(value, str) else as_list(value):
        if not isinstance(pattern, str) or not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"{SECTION}.{key}: {pattern!r} matches no weight; weights are named like "
                "model.layers.0.self_attn.q_proj.lora_A.weight"
            )
        patterns.append(pattern)
    return patterns


def _matches_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def peft_targets(modules: Sequence[str], config: Qwen3Config) -> list[str]:
    """Return `target_modules` for PEFT: names of layers where all of a name are adapted, else whole paths."""
    leaves: dict[str, int] = {}
    for module in modules:
        leaf = module.rpartition(".")[2]
        leaves[leaf] = leaves.get(leaf, 0) + 1
    everywhere: dict[str, int] = {}
    for name, shape in config.weight_shapes().items():
        if len(shape) == 2:
            leaf = re.sub(r"\.weight$", "", name).rpartition(".")[2]
            everywhere[leaf] = everywhere.get(leaf, 0) + 1
    if all(everywhere[leaf] == count for leaf, count in leaves.items()):
        return sorted(leaves)
    return list(modules)
