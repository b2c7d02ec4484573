"""mindformers' keys of a profile: which steps are recorded, of which ranks, and what."""

from dataclasses import dataclass
from pathlib import Path

from qwen3_model.command.narrow import as_int, as_list, as_text
from qwen3_model.command.run_config import RunConfig
from qwen3_model.errors import ConfigError

KEYS = (
    "profile_start_step", "profile_stop_step", "profile_communication", "profile_memory", "profiler_level",
    "profile_pipeline", "profile_output", "profile_rank_ids", "mstx", "with_stack",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileSettings:
    """What MindSpore's profiler records."""

    first: int
    """First step that is recorded; 1 also records the compilation."""
    last: int
    rank_ids: tuple[int, ...] | None
    """Ranks that record; None for all, unless `one_of_each_stage`."""
    one_of_each_stage: bool
    """Record one rank of each pipeline stage, besides those named."""
    level: int
    """0 to 2, on Ascend; 2 records the most."""
    memory: bool
    with_stack: bool
    mstx: bool
    output: Path | None
    """Folder for `profile/rank_R`; None for the run's."""


def read_profile(config: RunConfig) -> ProfileSettings | None:
    """Return what is to be recorded; None where `profile` is not True.

    Raises:
        ConfigError: The window is empty, or rank ids are no numbers.
    """
    if not config.get("profile"):
        return None
    first = as_int(config.get("profile_start_step", 1))
    last = as_int(config.get("profile_stop_step", 10))
    if not 1 <= first <= last:
        raise ConfigError(
            f"profile_start_step={first} and profile_stop_step={last} are no window of steps; count from 1, "
            "the start before the stop"
        )
    stated = config.get("profile_rank_ids")
    ids = as_list(stated or [])
    rank_ids = tuple(rank for rank in ids if type(rank) is int and rank >= 0)
    if len(rank_ids) < len(ids):
        raise ConfigError(f"profile_rank_ids={stated} must be ranks, such as [0, 8]")
    level = as_int(config.get("profiler_level", 0))
    output = config.get("profile_output")
    return ProfileSettings(
        first=first,
        last=last,
        rank_ids=None if stated is None else rank_ids,
        one_of_each_stage=bool(config.get("profile_pipeline")),
        # As in mindformers, since level 0 leaves small exchanges out.
        level=max(level, 1) if config.get("profile_communication") else level,
        memory=bool(config.get("profile_memory")),
        with_stack=bool(config.get("with_stack")),
        mstx=bool(config.get("mstx")),
        output=Path(as_text(output)) if output else None,
    )
