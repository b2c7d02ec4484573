"""The small files that make weights a model: config.json, generation_config.json and the tokenizer's."""

import shutil
from pathlib import Path

from qwen3_model.errors import FormatError
from qwen3_model.text.tokenizer import TOKENIZER_FILES

COMPANION_FILES = (
    "config.json",
    "generation_config.json",
    *TOKENIZER_FILES,
    "LICENSE",
    "LICENSE.txt",
    "README.md",
)
TEMPLATES_DIR = "additional_chat_templates"


def find_companions(source: Path) -> Path | None:
    """Return the nearest folder with a config.json: in `source`, its `hf_files`, or two folders up."""
    for folder in (source, source.absolute().parent, source.absolute().parent.parent):
        for candidate in (folder, folder / "hf_files"):
            if (candidate / "config.json").is_file():
                return candidate
    return None


def companion_files(source: Path) -> list[Path]:
    """Return those that `source` has.

    Raises:
        FormatError: One is a link out of the folder to a file of another name, whose content nobody means to
            hand on.
    """
    names = [
        *COMPANION_FILES,
        *(f"{TEMPLATES_DIR}/{p.name}" for p in (source / TEMPLATES_DIR).glob("*.jinja")),
    ]
    found = [path for name in names if (path := source / name).is_file()]
    # The hub's cache keeps the files of snapshots/X as links to its blobs.
    tree = source.resolve()
    tree = tree.parent.parent if tree.parent.name == "snapshots" else tree
    for path in found:
        target = path.resolve()
        if target.name != path.name and not target.is_relative_to(tree):
            raise FormatError(
                f"{path} is a link out of its folder, to {target}; put a copy in its place if that is meant"
            )
    return found


def copy_companions(source: Path, target: Path) -> None:
    """Copy those that `source` has into `target`, which is made when needed."""
    target.mkdir(exist_ok=True)
    for path in companion_files(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
