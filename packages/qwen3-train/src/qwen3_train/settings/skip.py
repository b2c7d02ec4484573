"""Which steps are left out instead of applied, under mindformers' keys; free of MindSpore."""

from dataclasses import dataclass

from qwen3_model.command.narrow import as_int, as_number
from qwen3_model.command.run_config import RunConfig
from qwen3_model.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class SkipSettings:
    """A step is skipped unless its loss is a number and the norm of its gradients is below a limit."""

    norm_limit: float
    """Limit of the global norm before clipping; a huge one skips only what is no number."""
    most_in_row: int
    """The run stops at so many skipped steps one after the other."""
    stops_at_nan: bool
    """Skip a norm that is too large, stop at what is no number."""


def read_skip(config: RunConfig) -> SkipSettings | None:
    """Return when to skip a step, or None where every step is applied and what is no number stops the run.

    Raises:
        ConfigError: A threshold is out of range.
    """
    # As mindformers' documentation states the defaults; its code has 1.0 for the first.
    limit = as_number(config.get("monitor_config.global_norm_spike_threshold", 3.0))
    most = as_int(config.get("monitor_config.global_norm_spike_count_threshold", 10))
    problems = []
    if not limit > 0:
        problems.append(f"monitor_config.global_norm_spike_threshold={limit} must be above 0")
    if most < 1:
        problems.append(f"monitor_config.global_norm_spike_count_threshold={most} must be at least 1")
    if problems:
        raise ConfigError("; ".join(problems))
    if not config.get("use_skip_data_by_global_norm", False):
        return None
    return SkipSettings(
        norm_limit=float(limit),
        most_in_row=most,
        stops_at_nan=bool(config.get("check_for_nan_in_loss_and_grad", False)),
    )
