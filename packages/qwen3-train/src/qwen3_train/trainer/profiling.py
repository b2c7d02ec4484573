"""Steps of a run recorded with MindSpore's profiler, for MindStudio Insight."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_train.parallel.grid import Grid
from qwen3_train.settings.profiling import ProfileSettings

if TYPE_CHECKING:  # it takes a second to import
    from mindspore.profiler import profile


class StepProfiler:
    """Record the steps of a window, on the ranks that are asked to."""

    def __init__(
        self,
        settings: ProfileSettings | None,
        output_dir: Path,
        grid: Grid,
        device: str,
        say: Callable[[str], None],
    ) -> None:
        """Take what to record, None for nothing, and what says where the record is."""
        self.settings = settings if settings and _is_asked(settings, grid) else None
        self.device, self.say = device, say
        folder = settings.output if settings and settings.output else output_dir
        self.folder = folder / "profile" / f"rank_{grid.rank}"
        self._profiler: profile | None = None

    def before(self, step: int) -> None:
        """Begin where the window does, or within it where this start of the run does."""
        settings = self.settings
        if settings and self._profiler is None and settings.first <= step <= settings.last:
            steps = settings.last - step + 1
            self._profiler = _make_profiler(settings, steps, self.folder, self.device)
            self._profiler.start()

    def after(self, step: int) -> None:
        """Mark the end of a step, and end after the window's last one."""
        if self._profiler is not None:
            self._profiler.step()
        if self.settings and step >= self.settings.last:
            self.close()

    def close(self) -> None:
        """Write what was recorded, also where a run ends within the window."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
            self.say(f"the profile is in {self.folder}")


def _is_asked(settings: ProfileSettings, grid: Grid) -> bool:
    """Return whether a rank records: all do, unless some are named, one of each stage is wanted, or both."""
    if settings.rank_ids is None and not settings.one_of_each_stage:
        return True
    is_first_of_stage = grid.replica == 0 and grid.shard == 0
    return grid.rank in (settings.rank_ids or ()) or (settings.one_of_each_stage and is_first_of_stage)


def _make_profiler(settings: ProfileSettings, steps: int, folder: Path, device: str) -> "profile":
    from mindspore.profiler import (
        ProfilerActivity,
        ProfilerLevel,
        profile,
        schedule,
        tensorboard_trace_handler,
    )
    from mindspore.profiler import _ExperimentalConfig as Details

    levels = (ProfilerLevel.Level0, ProfilerLevel.Level1, ProfilerLevel.Level2)
    is_ascend = device == "Ascend"
    return profile(
        activities=[ProfilerActivity.CPU, *[ProfilerActivity.NPU] * is_ascend],
        with_stack=settings.with_stack,
        profile_memory=settings.memory and is_ascend,
        start_profile=False,
        schedule=schedule(wait=0, warmup=0, active=steps, repeat=1, skip_first=0),
        on_trace_ready=tensorboard_trace_handler(dir_name=str(folder)),
        experimental_config=Details(profiler_level=levels[settings.level], mstx=settings.mstx and is_ascend),
    )
