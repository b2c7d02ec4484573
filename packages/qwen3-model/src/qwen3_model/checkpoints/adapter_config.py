"""PEFT's adapter_config.json: which keys are understood, and the scale and rank of each module by them.

Keys are allowed by name. A key that is unknown here is refused where it says anything, so that what a later
peft adds is never passed over in silence.

Source: peft's LoraConfig; a pattern's key fits a module when it matches the end of its path.
"""

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.command.json_file import read_json
from qwen3_model.command.narrow import is_above_zero
from qwen3_model.errors import FormatError

CONFIG_FILE = "adapter_config.json"
READ = {
    "alpha_pattern", "bias", "ensure_weight_tying", "init_lora_weights", "lora_alpha", "modules_to_save",
    "peft_type", "r", "rank_pattern", "use_rslora",
}  # fmt: skip
# Where adapters go and how they are trained; the finished weights say the same or do not depend on it.
WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
MOST_PATTERN, MOST_REPETITIONS = 1000, 4
# Other starts change the base, too, by what PEFT computes again at loading; base plus B A is not the model.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What a PEFT folder says about its adapters."""

    path: Path
    alpha: float
    rank: int | None
    """Rank of modules without one of their own; None where the file does not say."""
    is_rslora: bool
    """Whether the scale is alpha / sqrt(rank) instead of alpha / rank."""
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    modules_to_save: tuple[str, ...]
    """Ends of the paths of modules whose whole weights lie in the adapter, in place of the base's."""
    ties_head: bool
    """Whether an adapter of the embedding is the tied head's, too."""
    base: str
    """Name or folder of the base."""

    def scale(self, module: str, rank: int) -> float:
        """Return what B A of a module is multiplied by."""
        alpha = _find_by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rslora else rank)

    def check_rank(self, module: str, rank: int) -> None:
        """Raise FormatError where the file states another rank for a module than its adapter has."""
        stated = _find_by_pattern(self.rank_pattern, module, rank if self.rank is None else self.rank)
        if stated != rank:
            raise FormatError(
                f"{self.path} says rank {stated!r}, but the adapters of {module} have rank {rank}; the two "
                "are of different adapters"
            )


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read `folder/adapter_config.json`.

    Raises:
        FormatError: It is missing or damaged, or asks for something other than LoRA without bias.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FormatError(f"{folder} has no {CONFIG_FILE}; give a PEFT adapter folder")
    config = read_json(path)
    alpha = stated_alpha_in(config, path)
    used = [key for key in config.keys() - READ - WITHOUT_EFFECT if config[key]]
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        used.append(f"peft_type {kind!r}")
    if (bias := config.get("bias", "none")) != "none":
        used.append(f"bias {bias!r}")
    if (start := config.get("init_lora_weights", True)) not in PLAIN_STARTS:
        used.append(f"init_lora_weights {start!r}")
    if used:
        raise FormatError(
            f"{path}: only plain LoRA without bias is implemented, not {', '.join(sorted(used))}"
        )
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise FormatError(f"{path}: modules_to_save must list names of modules")
    rank = config.get("r")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise FormatError(f"{path}: r is {rank!r}, not a rank of at least 1")
    return AdapterConfig(
        path=path, alpha=alpha, rank=rank, is_rslora=_flag(config, "use_rslora", path),
        rank_pattern=_pattern(config, "rank_pattern", path),
        alpha_pattern=_pattern(config, "alpha_pattern", path),
        modules_to_save=tuple(saved), ties_head=_flag(config, "ensure_weight_tying", path),
        base=str(config.get("base_model_name_or_path") or ""),
    )  # fmt: skip


def stated_alpha_in(config: Mapping[str, object], path: Path) -> float:
    """Return LoRA's alpha; raise FormatError where it is no number above 0."""
    alpha = config.get("lora_alpha")
    if not is_above_zero(alpha):
        shown = reprlib.repr(alpha)
        raise FormatError(f"{path} is no adapter config: its lora_alpha is {shown}, not a number above 0")
    return float(alpha)


def peft_config(
    base: str, *, rank: int, alpha: float, dropout: float, targets: list[str]
) -> dict[str, object]:
    """Return the contents of the file for plain LoRA.

    Args:
        base: Name or folder of the base.
        rank: Rows of A.
        alpha: The scale is alpha / rank.
        dropout: Share of the inputs that training left out.
        targets: Modules with an adapter, as `target_modules` names them.
    """
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
    }


def _flag(config: Mapping[str, object], key: str, path: Path) -> bool:
    value = config.get(key) or False
    if not isinstance(value, bool):
        raise FormatError(f"{path}: {key} is {value!r}, not true or false")
    return value


def _pattern(config: Mapping[str, object], key: str, path: Path) -> dict[str, float]:
    stated = config.get(key) or {}
    if not isinstance(stated, dict):
        raise FormatError(f"{path}: {key} is {stated!r:.80}, but must map patterns of modules to numbers")
    pattern: dict[str, float] = {}
    try:
        for name, value in stated.items():
            if not is_simple_pattern(name):
                raise FormatError(
                    f"{path}: {key} has the pattern {name:.80}, which may never end to match; write "
                    "names of modules"
                )
            if not is_above_zero(value):
                raise FormatError(f"{path}: {key} of {name} is {reprlib.repr(value)}, not a number above 0")
            pattern[name] = value
    except re.error as error:
        raise FormatError(f"{path}: {key} must map patterns of modules to numbers: {error}") from None
    return pattern


def is_simple_pattern(pattern: str) -> bool:
    """Return whether a regular expression is matched soon: few repetitions, none of a group.

    Raises:
        re.error: It is no regular expression.
    """
    re.compile(pattern)
    repetitions = len(re.findall(r"[*+?{]", pattern))
    is_nested = re.search(r"\)[*+?{]", pattern) is not None
    return len(pattern) <= MOST_PATTERN and repetitions <= MOST_REPETITIONS and not is_nested


def _find_by_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    fitting = (value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(fitting, default)
