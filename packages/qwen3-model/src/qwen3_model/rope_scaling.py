"""How `config.json` describes the rotary embedding: its base and, for long contexts, YaRN's stretch."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from qwen3_model.command.narrow import as_flag, as_number, build, is_finite, is_number
from qwen3_model.errors import ConfigError, FormatError

T = TypeVar("T")

KEYS: Mapping[str, Callable[[object], object]] = {
    "factor": as_number,
    "original_max_position_embeddings": as_number,
    "attention_factor": as_number,
    "beta_fast": as_number,
    "beta_slow": as_number,
    "truncate": as_flag,
}
"""What a scaling may state, each with what checks its type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class YarnScaling:
    """The parameters of YaRN (Peng et al. 2023)."""

    factor: float
    """How many times longer the context becomes."""
    original_max_position_embeddings: int
    """Context in tokens before the stretch."""
    attention_factor: float | None = None
    """Scale of cos and sin; None means 0.1 ln(factor) + 1."""
    beta_fast: float = 32.0
    """Rotations over the original context above which a frequency stays as it is."""
    beta_slow: float = 1.0
    """Rotations below which a frequency is divided by `factor`."""
    truncate: bool = True
    """Whether the bounds of the ramp are rounded outward to whole dimensions."""

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ConfigError(f"rope_scaling: factor={self.factor!r} must be at least 1")
        if self.original_max_position_embeddings < 1:
            raise ConfigError("rope_scaling: original_max_position_embeddings must be at least 1")

    def to_hf(self) -> dict[str, object]:
        """Return the `rope_scaling` object of `config.json`."""
        raw: dict[str, object] = {
            "rope_type": "yarn",
            "factor": self.factor,
            "original_max_position_embeddings": self.original_max_position_embeddings,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
        }
        if self.attention_factor is not None:
            raw["attention_factor"] = self.attention_factor
        if not self.truncate:
            raw["truncate"] = False
        return raw


def read_rope(raw: Mapping[str, object]) -> tuple[float, YarnScaling | None]:
    """Return the base and the scaling from either spelling of `config.json`.

    Raises:
        ConfigError: No base is stated, the two spellings disagree, or the kind of scaling is not implemented.
    """
    newer, older = _section(raw, "rope_parameters"), _section(raw, "rope_scaling")
    stated = [base for source in (raw, newer, older) if (base := source.get("rope_theta")) is not None]
    bases = {float(_check_value("rope_theta", base, as_number)) for base in stated}
    for source in (newer, older):
        source.pop("rope_theta", None)
    if len(bases) != 1:
        raise ConfigError(f"config.json must state rope_theta once, found {sorted(bases) or 'none'}")
    scalings = [scaling for scaling in (_read_scaling(newer, raw), _read_scaling(older, raw)) if scaling]
    if len(set(scalings)) > 1:
        raise ConfigError("config.json: rope_parameters and rope_scaling disagree")
    return bases.pop(), scalings[0] if scalings else None


def _section(raw: Mapping[str, object], key: str) -> dict[str, object]:
    section = raw.get(key)
    if not isinstance(section, dict | None):
        raise ConfigError(f"config.json: {key}={section!r} must be a section with keys")
    return dict(section or {})


def _check_value(key: str, value: object, narrow: Callable[[object], T]) -> T:
    try:
        narrowed = narrow(value)
    except FormatError as error:
        raise ConfigError(f"config.json: {key}: {error}") from None
    if is_number(narrowed) and not is_finite(narrowed):
        raise ConfigError(f"config.json: {key}={reprlib.repr(value)} must be a finite number")
    return narrowed


def _read_scaling(source: dict[str, object], raw: Mapping[str, object]) -> YarnScaling | None:
    kind = source.pop("rope_type", None) or source.pop("type", None) or "default"
    source.pop("type", None)
    if kind == "default":
        if source:
            raise ConfigError(f"config.json: rope of type 'default' takes no {', '.join(sorted(source))}")
        return None
    if kind != "yarn":
        raise ConfigError(f"config.json: rope type {kind!r} is not implemented, only 'default' and 'yarn'")
    if unknown := sorted(source.keys() - KEYS.keys()):
        raise ConfigError(f"config.json: rope_scaling has unknown keys {', '.join(unknown)}")
    source.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    stated = {
        key: _check_value(f"rope_scaling.{key}", value, KEYS[key])
        for key, value in source.items()
        if value is not None
    }
    if missing := [key for key in ("factor", "original_max_position_embeddings") if key not in stated]:
        raise ConfigError(f"config.json: rope_scaling of type 'yarn' lacks {', '.join(missing)}")
    return build(YarnScaling, stated)
