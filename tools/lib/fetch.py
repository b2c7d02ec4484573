"""Fill wheelhouse/ with what is missing, through pip and from whatever index pip is configured for."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from wheels import Target, Wheel, sha256_of

LARGE_BYTES = 50_000_000  # fetched one by one, so that an interrupted run keeps what it has


class SetupError(Exception):
    """Something that the user can put right; the text is the sentence to print."""


def fill_wheelhouse(
    wheelhouse: Path, wheels: Sequence[Wheel], python: list[str], *, target: Target | None = None
) -> None:
    """Fetch the wheels that `wheelhouse` lacks; drop and fetch again those whose SHA-256 is not the lock's.

    Args:
        wheelhouse: The folder; may be a copy from another machine, or a link to a shared one.
        wheels: What must be there in the end.
        python: The command of an interpreter with pip.
        target: The kind of machine that they are for, when it is not this one.
    Raises:
        SetupError: No space, no network, or an index that lacks a wheel or serves another one.
    """
    missing = [wheel for wheel in wheels if not _is_good(wheelhouse / wheel.file, wheel)]
    if not missing:
        return
    needed = sum(wheel.size_bytes for wheel in missing)
    require_free_space(wheelhouse, needed, "to fetch the packages")
    print(f"fetching {len(missing)} wheels, {needed / 1e6:.0f} MB, into wheelhouse/ ...", flush=True)
    small = [wheel for wheel in missing if wheel.size_bytes < LARGE_BYTES]
    for batch in [small, *([wheel] for wheel in missing if wheel.size_bytes >= LARGE_BYTES)]:
        if batch:
            _fetch(wheelhouse, batch, python, target)


def require_free_space(directory: Path, needed_bytes: int, purpose: str) -> None:
    """Raise SetupError when the disk of an existing `directory` has less room than that."""
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise SetupError(
            f"{directory} needs {needed_bytes / 1e9:.1f} GB {purpose}, {free_bytes / 1e9:.1f} GB are free; "
            "make room, or make the folder a link to a larger disk"
        )


def _is_good(path: Path, wheel: Wheel) -> bool:
    if not path.is_file():
        return False
    if path.stat().st_size == wheel.size_bytes and sha256_of(path) == wheel.sha256:
        return True
    print(
        f"wheelhouse/{path.name} is not the file that uv.lock names (damaged?); fetching it again", flush=True
    )
    return False


def _fetch(wheelhouse: Path, batch: list[Wheel], python: list[str], target: Target | None) -> None:
    """Let pip download into a folder of its own, then move the whole files into place."""
    incoming = wheelhouse / ".incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    listed = incoming / "requirements.txt"
    listed.write_text(
        "".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in batch), encoding="utf-8"
    )
    shows_progress = sys.stdout.isatty() and len(batch) == 1
    command = [*python, "-m", "pip", "--disable-pip-version-check", "download", "--no-cache-dir", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "--dest", str(incoming), "-r", str(listed)]
    command += [*_platform_flags(target), *([] if shows_progress else ["--quiet"])]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        shutil.rmtree(incoming, ignore_errors=True)
        raise SetupError(_explain(done.stderr, batch))
    for wheel in batch:
        source = incoming / wheel.file
        if not source.is_file():
            raise SetupError(
                f"pip fetched {wheel.name} under another name than {wheel.file}; is its index a mirror?"
            )
        source.replace(wheelhouse / wheel.file)
    shutil.rmtree(incoming, ignore_errors=True)


def _platform_flags(target: Target | None) -> list[str]:
    if target is None:
        return []
    tags = [f"manylinux_2_{minor}_{target.machine}" for minor in range(5, 35)]
    tags += [f"manylinux{year}_{target.machine}" for year in (1, 2010, 2014)]
    flags = ["--python-version", f"3.{target.python_minor}", "--implementation", "cp"]
    return flags + [flag for tag in tags for flag in ("--platform", tag)]


NETWORK_WORDS = (
    "Max retries",
    "ConnectionError",
    "name resolution",
    "timed out",
    "SSL",
    "ProxyError",
    "Connection",
)


def _explain(stderr: str, batch: list[Wheel]) -> str:
    """Return one sentence on why pip failed and what helps, with pip's own words."""
    errors = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR:")]
    said = errors[-1] if errors else (stderr.strip().splitlines() or ["no reason given"])[-1]
    what = batch[0].file if len(batch) == 1 else f"{len(batch)} wheels"
    otherwise = f"or copy a filled wheelhouse/ from another machine (docs/install.md); pip: {said}"
    if "No space left" in stderr:
        return f"the disk filled up while pip fetched {what}; make room and run tools/setup again"
    if "DO NOT MATCH THE HASHES" in stderr:
        names = ", ".join(wheel.name for wheel in batch if wheel.name in stderr) or what
        return (
            f"pip's index serves other files than uv.lock names for {names}; use an index that mirrors truly"
        )
    if any(word in stderr for word in NETWORK_WORDS):
        return f"pip could not reach its index to fetch {what}; check network and proxy, {otherwise}"
    return f"pip's index (see `pip config list`) does not give {what}; name another one, {otherwise}"
