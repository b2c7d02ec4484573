"""Outputs that appear whole or not at all, also after a kill at any moment."""

import ctypes
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen3_model.errors import OutputExistsError, Qwen3Error

# From linux/fcntl.h and linux/fs.h.
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise OutputExistsError when `path` exists without `force`, or holds the working or home folder.

    Also when it is a device or a pipe, with or without `force`: a rename would put a file in its place.
    """
    _refuse_special(path)
    if path.exists() and any(place.is_relative_to(path.resolve()) for place in (Path.cwd(), Path.home())):
        raise OutputExistsError(
            f"{path} holds the working or the home folder and is never replaced; name another"
        )
    if path.exists() and not force:
        raise OutputExistsError(f"{path} already exists; choose another output or pass --force to replace it")


def _refuse_special(path: Path) -> None:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OutputExistsError(
            f"{path} is a device or a pipe, which a whole file cannot take the place of; name a file"
        )


def require_free_space(directory: Path, needed_bytes: int) -> None:
    """Raise Qwen3Error when the file system of `directory` (or its nearest existing parent) is too full."""
    existing = directory.absolute()
    while not existing.exists():
        existing = existing.parent
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise Qwen3Error(
            f"{directory} needs {needed_bytes / 1e9:.2f} GB but {free_bytes / 1e9:.2f} GB are free; "
            "make room or choose another output"
        )


def require_writable(path: Path) -> None:
    """Raise Qwen3Error or OSError now when `path`, meant for later, cannot be written; makes its folder."""
    _make_parent(path)
    temporary = temporary_neighbour(path)
    temporary.touch()
    temporary.unlink()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary neighbour of `path`, then rename it over `path`.

    The data are on disk before the name appears, so a power cut leaves the old file or the new one. A link
    to a file stays, and that file is replaced.

    Raises:
        OutputExistsError: `path` is a device or a pipe.
    """
    _refuse_special(path)
    if path.is_symlink() and path.exists():
        path = path.resolve()
    _make_parent(path)
    temporary = temporary_neighbour(path)
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def output_directory(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends without an error.

    An existing `path` is replaced (with `force`) only after the new one is whole.

    Raises:
        OutputExistsError: `path` exists and `force` is false.
    """
    refuse_existing(path, force=force)
    _make_parent(path)
    temporary = temporary_neighbour(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        refuse_existing(path, force=force)  # another run may have made it meanwhile
        replace_directory(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_directory(new: Path, path: Path) -> None:
    """Rename folder `new` to `path`; what stood there goes only after the new one is in place."""
    if not path.exists():
        new.rename(path)
        return
    if not _exchange(new, path):
        old = temporary_neighbour(path, suffix="old")
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
        old.rename(new)
    if new.is_dir() and not new.is_symlink():
        shutil.rmtree(new)
    else:
        new.unlink()


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step, so that no kill falls between; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    return libc.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0


def temporary_neighbour(path: Path, *, suffix: str = "tmp") -> Path:
    """Return a hidden name beside `path`, after removing what dead processes of this host left."""
    host = socket.gethostname()
    if path.parent.is_dir():
        for stale in path.parent.glob(f".{path.name}.{host}.*.tmp"):
            _remove_if_abandoned(stale)
    return path.with_name(f".{path.name}.{host}.{os.getpid()}.{suffix}")


def _make_parent(path: Path) -> None:
    in_the_way = [parent for parent in path.parents if parent.is_file()]
    if in_the_way:
        raise Qwen3Error(f"{path} cannot be made, since {in_the_way[0]} is a file; choose another output")
    path.parent.mkdir(parents=True, exist_ok=True)


def _remove_if_abandoned(stale: Path) -> None:
    owner = stale.name.split(".")[-2]
    if not owner.isdigit() or int(owner) == os.getpid() or Path(f"/proc/{owner}").exists():
        return
    if stale.is_dir():
        shutil.rmtree(stale, ignore_errors=True)
    else:
        stale.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file's data, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
