"""Caches of compiled code, which is run when found: taken only where nobody else could have written it."""

import os
import stat
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from qwen3_model.errors import Qwen3Error

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS_ENTER = stat.S_IXGRP | stat.S_IXOTH
PRIVATE = 0o700
ROOT = 0


class SharedFileError(Qwen3Error):
    """A file or folder that another user of the machine could have written."""


def cache_home(environment: Mapping[str, str]) -> Path:
    """Return the folder for caches: `$XDG_CACHE_HOME` where that is an absolute path, else `~/.cache`.

    Source: XDG Base Directory Specification, which has relative paths ignored.
    """
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


def state_home(environment: Mapping[str, str]) -> Path:
    """Return the folder for histories: `$XDG_STATE_HOME` where that is absolute, else `~/.local/state`."""
    named = Path(environment.get("XDG_STATE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".local/state"


def make_private(folder: Path) -> Path:
    """Make `folder` and what is missing above it, for the owner alone; return it as `require_private` does.

    Raises:
        SharedFileError: It is there, and is not the owner's alone.
        OSError: It cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    for each in reversed(missing):
        each.mkdir(mode=PRIVATE, exist_ok=True)
    return require_private(folder)


def require_private(path: Path) -> Path:
    """Return the real path of a file or folder that root or this user alone can have written.

    It belongs to one of them, and neither its group nor others may write it. So do the folders above it,
    where others may write only if the sticky bit keeps them from what is not theirs (as in /tmp), or if they
    cannot come there at all. Links on the way are followed and their target is judged; `path` itself is none.

    Raises:
        SharedFileError: Another user could have written it; the message says where.
        OSError: It is not there.
    """
    real = Path(os.path.realpath(path.parent), path.name)
    can_come = True
    for part in (*reversed(real.parents), real):
        found = part.lstat()
        is_last, mode = part == real, found.st_mode
        if is_last and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise SharedFileError(f"{part} is a link or a special file; remove it")
        if found.st_uid not in _owners(is_last=is_last):
            raise SharedFileError(
                f"{part} belongs to another user ({found.st_uid}), who could have put code there; remove it "
                "or choose another folder"
            )
        is_open = mode & OTHERS_WRITE and (is_last or (can_come and not mode & stat.S_ISVTX))
        if is_open:
            raise SharedFileError(
                f"{part} can be written by others ({stat.filemode(mode)}), who could have put code there; "
                f"look at what is in it, then remove it or take the right away (chmod go-w)"
            )
        can_come = can_come and bool(mode & OTHERS_ENTER)
    return real


def _owners(*, is_last: bool) -> set[int]:
    own = {ROOT, os.geteuid()}
    if is_last:
        return own
    # In a user namespace without root, the system's own folders seem to belong to nobody.
    return own | _read_unmapped_ids()


@cache
def _read_unmapped_ids() -> frozenset[int]:
    try:
        maps = Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines()
        if any(line.split()[:1] == ["0"] for line in maps):
            return frozenset()
        return frozenset({int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))})
    except (OSError, ValueError):
        return frozenset()
