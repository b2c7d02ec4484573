"""What a command reads, remembered so that nothing of it is replaced, and no change of it goes unseen."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.checkpoints.companions import companion_files, copy_companions, find_companions
from qwen3_model.checkpoints.rows import LazyTensor
from qwen3_model.checkpoints.source_file import SourceFile, open_source, refuse_changed
from qwen3_model.checkpoints.weight_files import Checkpoint
from qwen3_model.command.files import output_directory, require_free_space
from qwen3_model.command.progress import Progress
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The small files that make weights a model."""

    folder: Path
    config: Qwen3Config
    files: tuple[SourceFile, ...]
    overrides: tuple[Path, ...] = ()
    """Files that take the place of those of their names, such as an adapter's own tokenizer."""

    def copy(self, target: Path) -> None:
        """Copy the files into `target`, which is made when needed."""
        copy_companions(self.folder, target)
        for path in self.overrides:
            shutil.copyfile(path, target / path.name)


def find_model_files(near: Path, hf_dir: Path | None) -> ModelFiles | None:
    """Open config.json and its companions in `hf_dir`, or beside the weights; None where there is none."""
    folder = hf_dir or find_companions(near)
    if folder is None:
        return None
    files = tuple(open_source(path) for path in companion_files(folder))
    return ModelFiles(folder, Qwen3Config.from_dir(folder), files)


def need_model_files(near: Path, hf_dir: Path | None) -> ModelFiles:
    """Open config.json and its companions; raise ConfigError where there is no config.json."""
    found = find_model_files(near, hf_dir)
    if found is None:
        raise ConfigError(f"no config.json lies beside {near}; name its folder with --hf-dir")
    return found


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that a command reads."""

    paths: tuple[Path, ...]
    """What the user named."""
    files: tuple[SourceFile, ...]
    """Every file of it that is read."""

    def all_paths(self) -> list[Path]:
        """Return what may not be replaced."""
        return [*self.paths, *(file.path for file in self.files)]


def sources_of(
    paths: Iterable[Path | None], checkpoints: Iterable[Checkpoint], model: ModelFiles | None
) -> Sources:
    """Collect what the user named and the files behind it."""
    files = [file for checkpoint in checkpoints for file in checkpoint.sources()]
    files += model.files if model else ()
    return Sources(tuple(path for path in paths if path), tuple(files))


@contextmanager
def output_of(
    sources: Sources, output: Path, size_bytes: int, *, force: bool, quiet: bool, label: str = "write"
) -> Iterator[tuple[Path, Progress]]:
    """Yield a temporary folder, which becomes `output` if no source has changed when the block ends.

    Raises:
        OutputExistsError: `output` is there and `force` is false, or it is or holds a source.
        FormatError: A source was changed or replaced meanwhile.
        Qwen3Error: The disk is too full.
    """
    require_free_space(output, size_bytes)
    with (
        output_directory(output, force=force, sources=sources.all_paths()) as folder,
        Progress(label, size_bytes, "B", quiet=quiet) as progress,
    ):
        yield folder, progress
        refuse_changed(sources.files)


def total_bytes(tensors: Iterable[LazyTensor]) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.plan.size_bytes for tensor in tensors)
