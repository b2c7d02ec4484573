"""Outputs that appear whole or not at all, also after a kill at any moment."""

import ctypes
import glob
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qwen3_model.errors import OutputExistsError, Qwen3Error

# From linux/fcntl.h and linux/fs.h.
AT_FDCWD, RENAME_EXCHANGE = -100, 2
MAX_NAME_BYTES = 255
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))


def refuse_existing(path: Path, *, force: bool, sources: Iterable[Path] = ()) -> None:
    """Refuse an output that may not be replaced.

    Raises:
        OutputExistsError: `path` exists without `force`; or, with or without it, `path` is or holds one of
            the `sources` that the command reads, or the working or the home folder; or it is a device, a
            pipe or a link to nothing, which a rename would replace.
    """
    _refuse_special(path)
    if path.is_symlink() and not path.exists():
        raise OutputExistsError(
            f"{path} is a link to {path.readlink()}, which is not there; remove it or choose another output"
        )
    if not path.exists():
        return
    if any(folder.is_relative_to(path.resolve()) for folder in (Path.cwd(), Path.home())):
        raise OutputExistsError(
            f"{path} holds the working or the home folder and is never replaced; name another"
        )
    if source := _source_in(path, sources):
        what = "is" if source.samefile(path) else "holds"
        raise OutputExistsError(
            f"{path} {what} {source}, which is read, and is never replaced; choose another output"
        )
    if not force:
        raise OutputExistsError(f"{path} already exists; choose another output or pass --force to replace it")


def _source_in(path: Path, sources: Iterable[Path]) -> Path | None:
    """Return the first source that is `path` or lies below it, by any name that either has."""
    output, known = path.stat(), dict[Path, bool]()

    def is_output(path: Path) -> bool:
        if path not in known:
            try:
                known[path] = os.path.samestat(path.stat(), output)
            except (OSError, ValueError):  # it is not there, or no name at all
                known[path] = False
        return known[path]

    for source in sources:
        names = {source.absolute(), Path(os.path.realpath(source)) if "\0" not in str(source) else source}
        if any(is_output(each) for name in names for each in (name, *name.parents)):
            return source
    return None


def _refuse_special(path: Path) -> None:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OutputExistsError(
            f"{path} is a device or a pipe, which a whole file cannot take the place of; name a file"
        )


def is_file_name(name: object) -> bool:
    """Return whether a value that a file states can name a file in that file's own folder."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES


def require_free_space(directory: Path, needed_bytes: int) -> None:
    """Raise Qwen3Error when the file system of `directory` (or its nearest existing parent) is too full."""
    existing = directory.absolute()
    while not existing.exists():
        existing = existing.parent
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        size, unit = next((size, unit) for size, unit in UNITS if needed_bytes >= size)
        needed, free = f"{needed_bytes / size:.2f} {unit}", f"{free_bytes / size:.2f} {unit}"
        raise Qwen3Error(
            f"{directory} needs {needed} but {free} are free; make room or choose another output"
        )


def require_writable(path: Path) -> None:
    """Raise Qwen3Error or OSError now when `path`, meant for later, cannot be written; makes its folder."""
    _make_parent(path)
    temporary = temporary_neighbour(path)
    _create(temporary)
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
    _create(temporary)
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
def output_directory(path: Path, *, force: bool = False, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends without an error.

    An existing `path` is replaced (with `force`) only after the new one is whole.

    Raises:
        OutputExistsError: `path` exists and `force` is false, or it is or holds one of the `sources`.
    """
    sources = list(sources)
    refuse_existing(path, force=force, sources=sources)
    _make_parent(path)
    temporary = temporary_neighbour(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        refuse_existing(path, force=force, sources=sources)  # another run may have made it meanwhile
        replace_directory(temporary, path)
        sync(path.parent)
    finally:
        if temporary.exists():
            _make_removable(temporary)
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
    if new.is_symlink() or not new.is_dir():
        new.unlink()
        return
    _make_removable(new)
    try:
        shutil.rmtree(new)
    except OSError as error:
        raise Qwen3Error(
            f"the new {path} is whole and in place, but what it replaced could not be removed and is left as "
            f"{new}: {error.strerror} ({error.filename})"
        ) from None


def _make_removable(folder: Path) -> None:
    """Let the owner change every folder in `folder`, where the system allows it."""
    for parent, folders, _ in os.walk(folder):
        for name in (".", *folders):
            inner = Path(parent, name)
            if not inner.is_symlink() and not os.access(inner, os.W_OK | os.X_OK):
                with suppress(OSError):
                    inner.chmod(stat.S_IRWXU)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step, so that no kill falls between; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    return libc.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0


def temporary_neighbour(path: Path, *, suffix: str = "tmp") -> Path:
    """Return a hidden name beside `path` that nobody can guess, after removing what dead processes left.

    The name states host and process, so that a later run knows which leftovers are abandoned.
    """
    host, stem = socket.gethostname(), os.fsencode(path.name)
    rest = f".{host}.{secrets.token_hex(8)}.{os.getpid()}.{suffix}"
    stem = stem[: MAX_NAME_BYTES - 1 - len(os.fsencode(rest))]
    start = f".{os.fsdecode(stem)}"
    if path.parent.is_dir():
        for stale in path.parent.glob(f"{glob.escape(start)}.{glob.escape(host)}.*.tmp"):
            _remove_if_abandoned(stale)
    return path.with_name(start + rest)


def _create(temporary: Path) -> None:
    """Make the file, which must be new: no link that a neighbour has put there is ever followed."""
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o666))


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
