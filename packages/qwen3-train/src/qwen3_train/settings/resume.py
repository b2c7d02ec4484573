"""The keys that say whether and from where a run continues."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3_model.command.narrow import as_int, as_text
from qwen3_model.command.run_config import RunConfig
from qwen3_model.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumeSettings:
    """Whether a start continues a run, and which."""

    mode: Literal["never", "auto", "always"]
    """auto: continue the run in `output_dir` if it has a checkpoint, else begin. always: refuse to begin."""
    source: Path | None = None
    """Run, checkpoint folder or file that `always` continues where `output_dir` has no checkpoint."""
    file: str | None = None
    """Name of one checkpoint file; None for the newest whole one."""
    ignore_data_skip: bool = False
    """Accept other data than the checkpoint's, and begin with their first sample."""
    data_skip_steps: int = 0
    """Steps of those other data to leave out."""

    @property
    def is_on(self) -> bool:
        """Whether a checkpoint is looked for."""
        return self.mode != "never"


def read_resume(config: RunConfig) -> ResumeSettings:
    """Read `resume_training`, `load_checkpoint`, `ignore_data_skip` and `data_skip_steps`.

    Raises:
        ConfigError: Values contradict each other.
    """
    value, source = config.get("resume_training", False), as_text(config.get("load_checkpoint", ""))
    ignore, skip = bool(config.get("ignore_data_skip", False)), as_int(config.get("data_skip_steps", 0))
    if skip < 0:
        raise ConfigError(f"data_skip_steps={skip} must be at least 0")
    if skip and not ignore:
        raise ConfigError(
            f"data_skip_steps={skip} counts steps of other data; set ignore_data_skip: True, or leave it out"
        )
    if ignore and not value:
        raise ConfigError("ignore_data_skip is for a run that goes on; set resume_training to auto or True")
    if isinstance(value, str) and value.lower() == "auto":
        return ResumeSettings(mode="auto", ignore_data_skip=ignore, data_skip_steps=skip)
    if not value:
        return ResumeSettings(mode="never")
    file = value if isinstance(value, str) else None
    if file is not None and "/" in file:
        source, file = str(Path(file).parent.parent), Path(file).name
    elif source and Path(source).is_file():
        source, file = str(Path(source).parent.parent), file or Path(source).name
    return ResumeSettings(
        mode="always",
        source=Path(source) if source else None,
        file=file,
        ignore_data_skip=ignore,
        data_skip_steps=skip,
    )
