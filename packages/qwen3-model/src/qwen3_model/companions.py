"""The small files that make weights a model: config.json, generation_config.json and the tokenizer's."""

import shutil
from pathlib import Path

from qwen3_model.tokenizer import TOKENIZER_FILES

COMPANION_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)


def find_companions(source: Path) -> Path | None:
    """Return the nearest folder with a config.json: in `source`, its `hf_files`, or two folders up."""
    for folder in (source, source.absolute().parent, source.absolute().parent.parent):
        for candidate in (folder, folder / "hf_files"):
            if (candidate / "config.json").is_file():
                return candidate
    return None


def companion_files(source: Path) -> list[Path]:
    """Return those that `source` has."""
    return [path for name in COMPANION_FILES if (path := source / name).is_file()]


def copy_companions(source: Path, target: Path) -> None:
    """Copy those that `source` has into `target`, which is made when needed."""
    target.mkdir(exist_ok=True)
    for path in companion_files(source):
        shutil.copyfile(path, target / path.name)
