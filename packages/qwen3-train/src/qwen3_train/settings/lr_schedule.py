"""Learning rates as functions of the step, under mindformers' names and keys.

Steps count from 0, so a warm-up from 0 takes its first step with a rate of 0, as mindformers and transformers
do. Where mindformers' own formula jumps (its polynomial and its restarts fall to the end value too early or
to 0), the curve here is the one that its documentation describes.
"""

import math
from collections.abc import Callable, Mapping

from qwen3_model.command.narrow import as_number, as_text
from qwen3_model.errors import ConfigError

Schedule = Callable[[int], float]

_WARMUP = ("warmup_steps", "warmup_ratio", "warmup_lr_init")
# Schedule type to the keys that it reads besides `type`, `learning_rate` (or `base_lr`) and `total_steps`.
SCHEDULES: dict[str, tuple[str, ...]] = {
    "ConstantWarmUpLR": _WARMUP,
    "LinearWithWarmUpLR": _WARMUP,
    "CosineWithWarmUpLR": (*_WARMUP, "num_cycles", "lr_end", "decay_steps", "decay_ratio"),
    "CosineWithRestartsAndWarmUpLR": (*_WARMUP, "num_cycles", "lr_end", "decay_steps"),
    "PolynomialWithWarmUpLR": (*_WARMUP, "power", "lr_end", "decay_steps"),
    "ConstantWithCoolDownLR": (
        *_WARMUP, "keep_steps", "decay_steps", "decay_ratio", "num_cycles",
        "lr_end1", "final_steps", "lr_end2",
    ),
    "WarmUpStableDecayLR": (*_WARMUP, "lr_end", "decay_start_steps", "decay_start_ratio"),
    "CosineAnnealingLR": ("t_max", "eta_min"),
    "CosineAnnealingWarmRestarts": ("t_0", "t_mult", "eta_min"),
}  # fmt: skip


ALIASES = {
    "constant_with_warmup": "ConstantWarmUpLR",
    "linear": "LinearWithWarmUpLR",
    "cosine": "CosineWithWarmUpLR",
    "cosine_with_restarts": "CosineWithRestartsAndWarmUpLR",
    "polynomial": "PolynomialWithWarmUpLR",
    "cosine_annealing": "CosineAnnealingLR",
    "cosine_annealing_warm_restarts": "CosineAnnealingWarmRestarts",
}
"""mindformers' short names."""


def make_schedule(section: Mapping[str, object], run_steps: int) -> Schedule:
    """Return the learning rate of each step that the YAML section `lr_schedule` describes.

    Args:
        section: The keys of `lr_schedule`; `total_steps` of -1 or none means `run_steps`.
        run_steps: Steps that the run will take.

    Raises:
        ConfigError: The type is unknown, or keys are missing, out of range or foreign to the type; all are
        named.
    """
    stated = as_text(section.get("type") or "ConstantWarmUpLR")
    kind = ALIASES.get(stated, stated)
    if kind not in SCHEDULES:
        names = ", ".join((*SCHEDULES, *ALIASES))
        raise ConfigError(f"lr_schedule.type={kind!r} is none of {names}")
    values = _numbers(section)
    problems = list(_problems(kind, values))
    if problems:
        raise ConfigError(f"lr_schedule of type {kind}: {'; '.join(problems)}")
    total = _total_steps(values, run_steps)
    peak = float(values.get("learning_rate", values.get("base_lr", 0.0)))
    decay = _DECAYS[kind](values, peak, total)
    return _with_warmup(values, peak, total, decay)


def warmup_length(section: Mapping[str, object], run_steps: int) -> int:
    """Return the steps in which the rate rises, of a schedule that `make_schedule` has accepted."""
    values = _numbers(section)
    return _warmup_steps(values, _total_steps(values, run_steps))


def _numbers(section: Mapping[str, object]) -> dict[str, float]:
    return {key: as_number(value) for key, value in section.items() if key != "type"}


def _total_steps(values: Mapping[str, float], run_steps: int) -> int:
    total = int(values.get("total_steps", -1))
    return run_steps if total == -1 else total


def _problems(kind: str, values: Mapping[str, float]) -> list[str]:
    problems = []
    allowed = {"learning_rate", "base_lr", "total_steps", *SCHEDULES[kind]}
    if foreign := sorted(values.keys() - allowed):
        problems.append(f"has no use for {', '.join(foreign)}")
    if "learning_rate" not in values and "base_lr" not in values:
        problems.append("lacks learning_rate")
    problems += [problem for key, value in values.items() if (problem := _range_problem(key, value))]
    for needed, kinds in (("t_max", "CosineAnnealingLR"), ("t_0", "CosineAnnealingWarmRestarts")):
        if kind == kinds and needed not in values:
            problems.append(f"lacks {needed}")
    if kind == "WarmUpStableDecayLR" and not values.keys() & {"decay_start_steps", "decay_start_ratio"}:
        problems.append("lacks decay_start_steps or decay_start_ratio")
    if kind in ("WarmUpStableDecayLR", "PolynomialWithWarmUpLR"):
        peak, end = values.get("learning_rate", math.inf), values.get("lr_end", 1e-7)
        if end >= peak:
            problems.append(f"lr_end={end} must be smaller than learning_rate={peak}")
    return problems


def _range_problem(key: str, value: float) -> str | None:
    if key.endswith("ratio") and not 0 <= value <= 1:
        return f"{key}={value} must be between 0 and 1"
    if key == "total_steps":
        return None if value == -1 or value >= 1 else f"{key}={value} must be at least 1, or -1 for all steps"
    if key in ("t_max", "t_0", "t_mult") and value < 1:
        return f"{key}={value} must be at least 1"
    if not math.isfinite(value) or value < 0:
        return f"{key}={value} must be a number of at least 0"
    return None


def _with_warmup(values: Mapping[str, float], peak: float, total: int, decay: Schedule) -> Schedule:
    warmup, initial = _warmup_steps(values, total), float(values.get("warmup_lr_init", 0.0))

    def rate(step: int) -> float:
        if step < warmup:
            return initial + (peak - initial) * step / warmup
        return decay(step)

    return rate


def _warmup_steps(values: Mapping[str, float], total: int) -> int:
    if "warmup_ratio" in values:
        return int(total * values["warmup_ratio"])
    return int(values.get("warmup_steps", 0))


def _steps(values: Mapping[str, float], key: str, total: int, default: int) -> int:
    """Return a number of steps, given as `<key>_steps` or as the part `<key>_ratio` of all steps."""
    if f"{key}_ratio" in values:
        return int(total * values[f"{key}_ratio"])
    return int(values.get(f"{key}_steps", default))


def _span(values: Mapping[str, float], key: str, total: int, default: int) -> int:
    """Return a length in steps, at least 1, given as `_steps` has it."""
    return max(1, _steps(values, key, total, default))


def _constant(values: Mapping[str, float], peak: float, total: int) -> Schedule:
    return lambda step: peak


def _linear(values: Mapping[str, float], peak: float, total: int) -> Schedule:
    span = max(1, total - _warmup_steps(values, total))
    return lambda step: peak * max(0.0, (total - step) / span)


def _cosine(values: Mapping[str, float], peak: float, total: int) -> Schedule:
    warmup, end = _warmup_steps(values, total), float(values.get("lr_end", 0.0))
    last = _span(values, "decay", total, total)
    span, cycles = max(1, last - warmup), float(values.get("num_cycles", 0.5))

    def rate(step: int) -> float:
        if step >= last:
            return end
        return end + (peak - end) * _half_wave(2.0 * cycles * (step - warmup) / span)

    return rate


def _restarts(values: Mapping[str, float], peak: float, total: int) -> Schedule:
    warmup, end = _warmup_steps(values, total), float(values.get("lr_end", 0.0))
    last = _span(values, "decay", total, total)
    span, cycles = max(1, last - warmup), float(values.get("num_cycles", 1.0))

    def rate(step: int) -> float:
        if step >= last:
            return end
        return end + (peak - end) * _half_wave((cycles * (step - warmup) / span) % 1.0)

    return rate


def _polynomial(values: Mapping[str, float], peak: float, total: int) -> Schedule:
    warmup, end = _warmup_steps(values, total), float(values.get("lr_end", 1e-7))
    span, power = _span(values, "decay", total, total - warmup), float(values.get("power", 1.0))

    def rate(step: int) -> float:
        left = max(0.0, 1.0 - (step - warmup) / span)
        return end + (peak - end) * left**power

    return rate


def _cool_down(values: Mapping[str, float], peak: float, total: int) -> Schedule:
    # Warm-up, plateau, cosine to lr_end1, plateau, then lr_end2 (DeepSeek-V3 Technical Report, section 4.2).
    # Without a length the cosine spans all steps, as in mindformers, so that the run ends before it does.
    keep_end = _warmup_steps(values, total) + int(values.get("keep_steps", 0))
    span = _span(values, "decay", total, total)
    end = float(values.get("lr_end1", 0.0))
    last = float(values.get("lr_end2", end))
    final_start = keep_end + span + int(values.get("final_steps", 0))
    cycles = float(values.get("num_cycles", 0.5))

    def rate(step: int) -> float:
        if step < keep_end:
            return peak
        if step < keep_end + span:
            return end + (peak - end) * _half_wave(2.0 * cycles * (step - keep_end) / span)
        return end if step < final_start else last

    return rate


def _stable_decay(values: Mapping[str, float], peak: float, total: int) -> Schedule:
    start, end = _steps(values, "decay_start", total, total), float(values.get("lr_end", 1e-7))
    span = max(1, total - start)

    def rate(step: int) -> float:
        if step < start:
            return peak
        return max(end, peak - (peak - end) * (step - start) / span)

    return rate


def _annealing(values: Mapping[str, float], peak: float, total: int) -> Schedule:
    period, end = int(values["t_max"]), float(values.get("eta_min", 0.0))
    return lambda step: end + (peak - end) * _half_wave(step / period)


def _annealing_restarts(values: Mapping[str, float], peak: float, total: int) -> Schedule:
    first, growth, end = int(values["t_0"]), int(values.get("t_mult", 1)), float(values.get("eta_min", 0.0))

    def rate(step: int) -> float:
        period = first
        while growth > 1 and step >= period:
            step, period = step - period, period * growth
        return end + (peak - end) * _half_wave((step % period) / period)

    return rate


def _half_wave(turn: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * turn)))


_DECAYS: dict[str, Callable[[Mapping[str, float], float, int], Schedule]] = {
    "ConstantWarmUpLR": _constant,
    "LinearWithWarmUpLR": _linear,
    "CosineWithWarmUpLR": _cosine,
    "CosineWithRestartsAndWarmUpLR": _restarts,
    "PolynomialWithWarmUpLR": _polynomial,
    "ConstantWithCoolDownLR": _cool_down,
    "WarmUpStableDecayLR": _stable_decay,
    "CosineAnnealingLR": _annealing,
    "CosineAnnealingWarmRestarts": _annealing_restarts,
}
