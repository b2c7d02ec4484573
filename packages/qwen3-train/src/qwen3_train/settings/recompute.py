"""Which parts of which layers are computed again in the backward pass; mindformers' `recompute_config`.

recompute         True: every layer whole; a number: so many layers of each stage, its first ones; a list: a
                  number for each stage
select_recompute  True: in the other layers what costs little and holds much; a number or a list as above; a
                  list of names: these parts; a section of names: each with True, a number or a list

A name is a regular expression for mindformers' name of a part, or ours (`PART_NAMES`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from qwen3_model.errors import ConfigError

ATTENTION, SWIGLU = "attention", "swiglu"
SELECTED = frozenset((ATTENTION, SWIGLU))
PART_NAMES = {
    ATTENTION: ("self_attn.core_attention", "self_attention.core_attention", "attention.core_attention"),
    SWIGLU: ("mlp.mul", "mlp.activation_func", "mlp.activation_func.silu", "mlp.swiglu", "feed_forward.mul",
             "feed_forward.w1.activation.silu"),
}  # fmt: skip
"""What a part is called, here, in mindformers, and in its older models."""
SECTION = "recompute_config"


@dataclass(frozen=True, slots=True)
class Recompute:
    """What to compute again, for any stage and layer."""

    whole: tuple[int, ...] | None = ()
    """How many layers of each stage are recomputed whole, its first ones; None for all, () for none."""
    parts: tuple[tuple[str, tuple[int, ...] | None], ...] = ()
    """Parts, and the same for those layers in which they alone are."""

    @property
    def kind(self) -> str | None:
        """none, selective or full, where it is the same for all layers; else None."""
        if self.whole is None:
            return "full"
        parts = dict(self.parts)
        if self.whole == () and not parts:
            return "none"
        is_selective = self.whole == () and parts.keys() == SELECTED and set(parts.values()) == {None}
        return "selective" if is_selective else None

    def is_whole(self, stage: int, layer: int) -> bool:
        """Return whether a layer, counted within its stage, is recomputed whole."""
        return _covers(self.whole, stage, layer)

    def parts_of(self, stage: int, layer: int) -> frozenset[str]:
        """Return the parts of a layer that are recomputed; all of them in a whole one."""
        if self.is_whole(stage, layer):
            return SELECTED
        return frozenset(part for part, counts in self.parts if _covers(counts, stage, layer))


def read_recompute(section: Mapping[str, object], num_stages: int) -> Recompute:
    """Read the keys of `recompute_config`.

    Raises:
        ConfigError: A value cannot be meant, or a name is that of no part.
    """
    whole = _counts(section.get("recompute", False), num_stages, f"{SECTION}.recompute")
    selected, key = section.get("select_recompute", False), f"{SECTION}.select_recompute"
    wanted: Mapping[str, object]
    if isinstance(selected, Mapping):
        wanted = selected
    elif isinstance(selected, list) and selected and all(isinstance(each, str) for each in selected):
        wanted = dict.fromkeys(selected, True)
    else:
        counts = _counts(selected, num_stages, key)
        return Recompute(whole, tuple((part, counts) for part in sorted(SELECTED) if counts != ()))
    parts: dict[str, tuple[int, ...] | None] = {}
    for pattern, value in wanted.items():
        counts = _counts(value, num_stages, f"{key}.{pattern}")
        for part in _parts_called(pattern, key):
            if counts != ():
                parts[part] = counts
    return Recompute(whole, tuple(sorted(parts.items())))


def _parts_called(pattern: str, key: str) -> list[str]:
    try:
        # mindformers writes a\.b where a regular expression is meant, and a.b where a name is.
        found = [
            part for part, names in PART_NAMES.items() if any(re.fullmatch(pattern, name) for name in names)
        ]
    except re.error as error:
        raise ConfigError(f"{key}: {pattern!r} is no regular expression ({error})") from None
    if not found:
        known = ", ".join(names[0] for names in PART_NAMES.values())
        raise ConfigError(
            f"{key}: {pattern!r} is no part that can be recomputed by itself; use {known}, or True for both"
        )
    return found


def _counts(value: object, num_stages: int, key: str) -> tuple[int, ...] | None:
    """Return the number of layers of each stage, None for all; an empty tuple for none."""
    if value is True:
        return None
    if value in (False, None, []):
        return ()
    if _is_count(value):
        return (value,) * num_stages
    if isinstance(value, Sequence) and not isinstance(value, str) and all(_is_count(each) for each in value):
        if len(value) != num_stages:
            raise ConfigError(
                f"{key}={value} has {len(value)} numbers for {num_stages} pipeline stages; give one for each"
            )
        return tuple(value)
    raise ConfigError(
        f"{key}={value!r} must be True, False, a number of layers, or a list of one for each stage"
    )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _covers(counts: tuple[int, ...] | None, stage: int, layer: int) -> bool:
    return counts is None or (bool(counts) and layer < counts[stage])
