"""The hidden folder in which a run grows, its resume points, and the step that makes its output visible.

The `.idx` of a token file appears last and an old one goes first, so a pair with an index is always whole and
of one run; without it, no reader opens the rest.
"""

import fcntl
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3_model.errors import OutputExistsError, Qwen3Error
from qwen3_model.files import refuse_existing, sync, write_text_atomically
from qwen3_model.tokens import sibling

ENDINGS = (".bin", ".mask", ".json", ".idx")
"""In the order in which they appear."""


class Workspace:
    """`.<name>.partial` beside the outputs; locked while a run uses it."""

    def __init__(self, prefix: Path, *, force: bool, resume: bool) -> None:
        self.prefix = prefix
        self.folder = folder_of(prefix)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise Qwen3Error(
                f"another run is writing {prefix}; wait for it or choose another output"
            ) from error
        self.progress = self._read_progress()
        if not resume:
            if self.progress is not None and not force:
                self._lock.close()
                raise OutputExistsError(
                    f"an interrupted run of {prefix} lies in {self.folder}; pass --resume to go on with it, "
                    "or --force to begin anew"
                )
            self._empty()

    def _read_progress(self) -> dict[str, Any] | None:
        path = self.folder / "progress.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise Qwen3Error(f"{path} is damaged; pass --force to begin anew") from error

    def _empty(self) -> None:
        self.progress = None
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()

    def save_progress(self, progress: Mapping[str, Any]) -> None:
        """Make this the place from which `--resume` goes on."""
        write_text_atomically(self.folder / "progress.json", json.dumps(progress))

    def commit(self, names: list[str]) -> None:
        """Make `<name>.bin`, `.json` and `.idx` of the folder visible; may be repeated after a kill.

        Args:
            names: Of the token files, without ending.
        """
        for name in names:
            final = self.prefix.with_name(name)
            if not sibling(self.folder / name, ".idx").exists():
                continue  # done before a kill
            if sibling(self.folder / name, ".bin").exists():
                sibling(final, ".idx").unlink(missing_ok=True)
                sibling(final, ".json").unlink(missing_ok=True)
                sibling(final, ".mask").unlink(missing_ok=True)
                sync(final.parent)
            for ending in ENDINGS:
                grown = sibling(self.folder / name, ending)
                if ending == ".idx":
                    sync(final.parent)
                if grown.exists():
                    grown.replace(sibling(final, ending))
            sync(final.parent)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def leave(self) -> bool:
        """Keep the folder if there is a resume point, else delete it; return whether it is kept."""
        if not (self.folder / "progress.json").exists():
            self.remove()
            return False
        self._lock.close()
        return True

    @staticmethod
    def has_progress(prefix: Path) -> bool:
        """Return whether an interrupted run of `prefix` can be resumed."""
        return (folder_of(prefix) / "progress.json").exists()


def folder_of(prefix: Path) -> Path:
    """Return the folder in which the outputs of `prefix` grow."""
    return prefix.with_name(f".{prefix.name}.partial")


def refuse_existing_outputs(prefixes: list[Path], *, force: bool) -> None:
    """Raise OutputExistsError when any file of the token files `prefixes` exists and `force` is false."""
    for prefix in prefixes:
        for ending in ENDINGS:
            refuse_existing(sibling(prefix, ending), force=force)
