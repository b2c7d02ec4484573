"""Which checkpoint a start of a run continues: its own newest whole one first, whatever else is named."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.checkpoints.checkpoint_files import (
    checkpoints_of,
    choose_rank_files,
    count_ranks,
    files_of_step,
)
from qwen3_model.checkpoints.rank_tensors import open_rank_tensors
from qwen3_model.checkpoints.safetensors_file import SafetensorsFile, open_safetensors
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.checkpoints.weight_files import HYPER, is_distributed, open_checkpoint, open_weight_files
from qwen3_model.errors import ConfigError, OutputExistsError
from qwen3_train.settings.run import TrainSettings

EARLIER = "earlier_layout"
"""Folder of a run with its checkpoints under another layout; see `other_layout`."""


class LateFiles(Mapping[int, SafetensorsFile]):
    """Files by rank that are opened when they are asked for."""

    def __init__(self, paths: Mapping[int, Path]) -> None:
        self._paths = paths
        self.opened: dict[int, SafetensorsFile] = {}

    def __getitem__(self, rank: int) -> SafetensorsFile:
        if rank not in self.opened:
            self.opened[rank] = open_safetensors(self._paths[rank])
        return self.opened[rank]

    def __contains__(self, rank: object) -> bool:
        return rank in self._paths

    def __iter__(self) -> Iterator[int]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumeSource:
    """A checkpoint with weights, moments and step."""

    files: Mapping[int, SafetensorsFile]
    """Open file of each rank that wrote it; for a merged checkpoint the one with the step."""
    is_own: bool
    """Whether it lies in the run's own folder."""
    merged: Path | None = None
    """Folder of a merged checkpoint; None where each rank has a file."""
    strategy: Path | None = None
    """Where strategy files are that do not lie in the checkpoint's run."""
    is_checked: bool = False
    """Whether another process has found it whole and of a fitting layout."""

    @property
    def first(self) -> Path:
        """Path of the file that says which step it is."""
        return self.first_file.path

    @property
    def first_file(self) -> SafetensorsFile:
        """The file that says which step it is."""
        return self.files[min(self.files)]

    def path(self, rank: int) -> Path:
        """Return the file of a rank; the first one for a rank that wrote none."""
        return self.files.get(rank, self.first_file).path

    @property
    def run_dir(self) -> Path:
        """Folder of the run that wrote it."""
        return self.merged or self.first.parent.parent.parent

    def paths(self) -> set[Path]:
        """Return the paths of all its files."""
        return {file.path for file in self.files.values()}

    def close(self) -> None:
        """Close the files, since the run that goes on removes older checkpoints; `open` finds them again."""
        opened = self.files.opened if isinstance(self.files, LateFiles) else self.files
        for file in opened.values():
            file.close()

    def open(self, own_rank: int | None = None) -> Tensors:
        """Open its tensors.

        Args:
            own_rank: Rank whose file is read wherever it holds what is wanted, rather than a replica's.

        Raises:
            ConfigError, FormatError: A file is missing or damaged, or files and strategies do not fit.
        """
        if self.merged is not None:
            return open_weight_files(self.merged, self.strategy)
        return open_rank_tensors(self.files, self.strategy, own_rank=own_rank)


def find_source(
    settings: TrainSettings, *, force: bool, notes: list[str], is_checked: bool = False
) -> ResumeSource | None:
    """Return the checkpoint to continue from, or None where the run begins.

    Args:
        settings: The run's settings.
        force: Allow an older checkpoint than the newest, which a name may ask for.
        is_checked: Whether the launcher has chosen it and found it whole, so that a rank needs no look at the
            files of all others.
        notes: Gets sentences for the log.

    Raises:
        ConfigError: There is none although `resume_training` asks for one, or the own ones are damaged.
        OutputExistsError: The named one is older than the run's newest.
    """
    resume = settings.resume
    if not resume.is_on:
        return None
    if is_checked and resume.file is not None:
        run_dir = resume.source or settings.output_dir
        is_own = _is_same(run_dir, settings.output_dir)
        return ResumeSource(
            files=LateFiles(files_of_step(run_dir, resume.file)),
            is_own=is_own,
            strategy=None if is_own else settings.strategy_from,
            is_checked=True,
        )
    own = newest_checkpoint(settings.output_dir, notes)
    if own is None and (earlier := newest_checkpoint(settings.output_dir / EARLIER, notes)) is not None:
        own = ResumeSource(files=earlier.files, is_own=False)
    if resume.file is not None:
        return _find_named(settings, resume.file, own, force=force, notes=notes)
    if own is not None:
        if resume.source is not None and not _is_same(resume.source, settings.output_dir):
            notes.append(f"load_checkpoint is where the run began; it goes on from {own.first}")
        return own
    if resume.mode == "auto":
        return None
    source = resume.source
    if source is None:
        choose_rank_files(settings.output_dir, None, None)  # says what is missing
    if source is None or _is_empty(source, settings.output_dir):
        notes.append(f"{source} holds no checkpoint yet, so the run begins")
        return None
    return _find_other(settings, source, None, notes)


def newest_checkpoint(run_dir: Path, notes: list[str]) -> ResumeSource | None:
    """Return the newest whole checkpoint in `run_dir`; None where none was ever finished.

    Raises:
        ConfigError: There are checkpoints and none can be read.
    """
    steps_of_ranks = [checkpoints_of(folder) for folder in (run_dir / "checkpoint").glob("rank_*/")]
    if not any(steps_of_ranks):
        return None
    common = set.intersection(*(set(steps) for steps in steps_of_ranks))
    is_unfinished = not common or len(steps_of_ranks) < count_ranks(run_dir / "checkpoint")
    if is_unfinished and len(set().union(*steps_of_ranks)) <= 1:
        # The first checkpoint was under way when the run ended.
        notes.append(f"no checkpoint in {run_dir} was finished on every rank, so the run begins anew")
        return None
    files, passed_over = choose_rank_files(run_dir, None, None)
    notes += [f"passed over: {problem}" for problem in passed_over]
    return ResumeSource(files=files, is_own=True)


def _find_named(
    settings: TrainSettings, name: str, own: ResumeSource | None, *, force: bool, notes: list[str]
) -> ResumeSource:
    other = settings.resume.source
    if other is not None and not _is_same(other, settings.output_dir):
        if own is None or force:
            return _find_other(settings, other, name, notes)
        notes.append(f"{name} of {other} is where the run began; it goes on from {own.first}")
        return own
    files, passed_over = choose_rank_files(settings.output_dir, None, name)
    notes += [f"passed over: {problem}" for problem in passed_over]
    if own is not None and own.paths() != {file.path for file in files.values()} and not force:
        raise OutputExistsError(
            f"{settings.output_dir} has {own.first.name}, which is newer than {files[0].path.name}; leave "
            "the name out to go on from the newest (--resume_training auto), or pass --force to give up the "
            "steps after the named one"
        )
    return ResumeSource(files=files, is_own=True)


def _find_other(settings: TrainSettings, source: Path, name: str | None, notes: list[str]) -> ResumeSource:
    """Return a checkpoint of another run, or a merged one."""
    if not source.exists():
        raise ConfigError(f"{source} does not exist; give a run or a checkpoint to go on from")
    if name is None and not is_distributed(source):
        opened = open_checkpoint(source)
        scalars = opened.path / HYPER
        if opened.run_state and not scalars.is_file():
            raise ConfigError(
                f"{source} is mindformers' newer form of a checkpoint, which is not resumed from as it is; "
                f"give what `qwen3-ckpt reshard {source} OUTPUT` makes of it, which keeps its step"
            )
        if not scalars.is_file() or not any(name.startswith("adam_m.") for name in opened.tensors):
            raise ConfigError(
                f"{source} has no optimizer state ({HYPER} with global_step, and adam_m and adam_v of "
                "each weight), so it cannot be resumed from; to begin with its weights use "
                "--resume_training auto"
            )
        return ResumeSource(files={0: open_safetensors(scalars)}, is_own=False, merged=source)
    files, passed_over = choose_rank_files(source, None, name)
    notes += [f"passed over: {problem}" for problem in passed_over]
    return ResumeSource(files=files, is_own=False, strategy=settings.strategy_from)


def _is_same(source: Path, output_dir: Path) -> bool:
    folders: Sequence[Path] = (output_dir, output_dir / "checkpoint")
    return source.resolve() in {folder.resolve() for folder in folders}


def _is_empty(source: Path, output_dir: Path) -> bool:
    """Return whether `source` is a folder for checkpoints without any: the run's own, or an empty one."""
    if source.is_dir():
        return not any(path.is_file() for path in source.rglob("*.safetensors")) and (
            _is_same(source, output_dir) or not any(source.iterdir())
        )
    return not source.exists() and source.resolve().is_relative_to(output_dir.resolve())
