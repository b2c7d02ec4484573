"""The hidden folder in which a run grows, its resume points, and the step that makes its output visible.

The `.idx` of a token file appears last and an old one goes first, so a pair with an index is always whole and
of one run; without it, no reader opens the rest.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from qwen3_data.input.sources import Source
from qwen3_model.command.files import refuse_existing, require_writable, sync, write_text_atomically
from qwen3_model.errors import ConfigError, OutputExistsError, Qwen3Error
from qwen3_model.text.tokens import sibling

ENDINGS = (".bin", ".mask", ".json", ".idx")
"""In the order in which they appear."""


class Workspace:
    """`.<name>.partial` beside the outputs; locked while a run uses it."""

    def __init__(self, prefix: Path, *, force: bool, resume: bool) -> None:
        self.prefix = prefix
        self.folder = folder_of(prefix)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self.progress = None if force and not resume else self._read_progress()
        if not resume:
            if self.progress is not None and not force:
                self._lock.close()
                raise OutputExistsError(
                    f"an interrupted run of {prefix} lies in {self.folder}; pass --resume to go on with it, "
                    "or --force to begin anew"
                )
            self._empty()

    def _take_lock(self) -> IO[str]:
        busy = Qwen3Error(f"another run is writing {self.prefix}; wait for it or choose another output")
        path = self.folder / "lock"
        try:
            self.folder.mkdir(exist_ok=True)
            lock = path.open("w")
        except FileNotFoundError:  # the other one has just ended, and taken its folder along
            raise busy from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A run that ends deletes the folder, and a lock on what is no longer there guards nothing.
            is_there = path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except OSError:
            is_there = False
        if not is_there:
            lock.close()
            raise busy
        return lock

    def _read_progress(self) -> dict[str, object] | None:
        path = self.folder / "progress.json"
        try:
            progress = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            progress = None
        if not isinstance(progress, dict) or progress.pop("digest", "") != _digest(progress):
            self._lock.close()
            raise Qwen3Error(
                f"{path} is damaged or of an earlier version; pass --force without --resume to begin anew"
            )
        return progress

    def _empty(self) -> None:
        self.progress = None
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()

    def save_progress(self, progress: Mapping[str, object]) -> None:
        """Save the position from which `--resume` continues."""
        whole = {**progress, "digest": _digest(progress)}
        write_text_atomically(self.folder / "progress.json", json.dumps(whole))

    def commit(self, names: list[str]) -> None:
        """Make `<name>.bin`, `.json` and `.idx` of the folder visible; may be repeated after a kill.

        Args:
            names: Names of the token files, without ending.
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
        # First what a resume goes by: killed halfway, it would take what is already gone for empty.
        (self.folder / "progress.json").unlink(missing_ok=True)
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
    def sweep(prefix: Path) -> None:
        """Delete what a run left that was killed while it deleted its folder."""
        if folder_of(prefix).exists():
            Workspace(prefix, force=False, resume=False).remove()

    @staticmethod
    def has_progress(prefix: Path) -> bool:
        """Return whether an interrupted run of `prefix` can be resumed."""
        return (folder_of(prefix) / "progress.json").exists()


def _digest(progress: Mapping[str, object]) -> str:
    """Return what tells a file that was changed from the one that a run wrote."""
    return hashlib.sha256(json.dumps(progress).encode("utf-8")).hexdigest()


def folder_of(prefix: Path) -> Path:
    """Return the folder in which the outputs of `prefix` grow."""
    return prefix.with_name(f".{prefix.name}.partial")


def check_rejects(rejects: Path | None, *, may_exist: bool) -> None:
    """Raise Qwen3Error or OSError now when the list of bad records cannot be written at the end."""
    if rejects is not None:
        refuse_existing(rejects, force=may_exist)
        require_writable(rejects)


def refuse_inputs(sources: list[Source], prefixes: list[Path], rejects: Path | None) -> None:
    """Raise ConfigError when an output would replace one of the inputs, also with `--force`."""
    inputs = {source.path.resolve() for source in sources}
    outputs = [sibling(prefix, ending) for prefix in prefixes for ending in ENDINGS]
    for path in (*outputs, *([] if rejects is None else [rejects])):
        if path.resolve() in inputs:
            raise ConfigError(f"{path} is an input and would be replaced by an output; name another output")


def refuse_existing_outputs(prefixes: list[Path], *, force: bool) -> None:
    """Raise OutputExistsError when any file of the token files `prefixes` exists and `force` is false."""
    for prefix in prefixes:
        for ending in ENDINGS:
            refuse_existing(sibling(prefix, ending), force=force)
