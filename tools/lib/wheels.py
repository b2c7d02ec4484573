"""Which wheel of uv.lock each kind of machine takes. Standard library only: nothing is installed yet."""

import hashlib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Target:
    """A kind of machine: Linux with glibc, one Python, one processor."""

    python_minor: int
    """11 or 12."""
    machine: str
    """As `uname -m` says: x86_64 or aarch64."""

    def __str__(self) -> str:
        return f"{self.machine}, Python 3.{self.python_minor}"


TARGETS = tuple(Target(minor, machine) for minor in (11, 12) for machine in ("x86_64", "aarch64"))
"""What the lock covers."""


@dataclass(frozen=True)
class Wheel:
    """One file that the lock names."""

    name: str
    version: str
    file: str
    sha256: str
    size_bytes: int


def read_lock(path: Path) -> list[Wheel]:
    """Return every wheel of a uv.lock, the workspace's own packages aside."""
    lock = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        Wheel(
            name=package["name"],
            version=package["version"],
            file=wheel.get("path") or wheel["url"].rpartition("/")[2],
            sha256=wheel["hash"].removeprefix("sha256:"),
            size_bytes=wheel["size"],
        )
        for package in lock["package"]
        for wheel in package.get("wheels", [])
    ]


def wheels_for(wheels: Iterable[Wheel], target: Target) -> list[Wheel]:
    """Return the best wheel of each package and version that `target` can run, by name."""
    best: dict[tuple[str, str], tuple[tuple[int, ...], Wheel]] = {}
    for wheel in wheels:
        key, rank = (wheel.name, wheel.version), rank_for(wheel.file, target)
        if rank is not None and (key not in best or rank > best[key][0]):
            best[key] = (rank, wheel)
    return [wheel for _, (_, wheel) in sorted(best.items())]


def rank_for(file: str, target: Target) -> tuple[int, ...] | None:
    """Return how well a wheel suits a target (larger is better), or None when it does not run there.

    Built for the machine goes before `any` (MindSpore's `any` wheel is its aarch64 one), a build for this
    Python before one for several, and of two Linux builds the one that asks for the older glibc.
    """
    pythons, abis, platforms = file.removesuffix(".whl").split("-")[-3:]
    built_for = f"cp3{target.python_minor}"
    if built_for in pythons.split(".") and {built_for, "none"} & set(abis.split(".")):
        python_rank = 2
    elif "abi3" in abis.split(".") and _oldest_minor(pythons) <= target.python_minor:
        python_rank = 1
    elif abis == "none" and _pure_minor(pythons, target) is not None:
        python_rank = 0
    else:
        return None
    newest = _pure_minor(pythons, target) or 0
    tags = [tag for tag in platforms.split(".") if tag.endswith(f"_{target.machine}")]
    glibcs = [minor for minor in map(_glibc, tags) if minor is not None]
    if glibcs:
        return 1, python_rank, -min(glibcs), newest
    return (0, python_rank, 0, newest) if platforms == "any" else None


def _pure_minor(pythons: str, target: Target) -> int | None:
    """Return the newest Python, 0 for any 3, that `py3` or `py311` names and the target is not older than."""
    minors = [int(tag[3:] or 0) for tag in pythons.split(".") if re.fullmatch(r"py3\d*", tag)]
    return max((minor for minor in minors if minor <= target.python_minor), default=None)


def _oldest_minor(pythons: str) -> int:
    """Return the oldest CPython minor version of a tag like `cp39` or `cp310.cp311`; 999 for none."""
    return min((int(minor) for minor in re.findall(r"\bcp3(\d+)", pythons)), default=999)


def _glibc(tag: str) -> int | None:
    """Return the minor version of glibc 2 that a platform tag asks for, None for other C libraries."""
    legacy = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}
    match = re.match(r"manylinux_2_(\d+)_", tag)
    return int(match[1]) if match else legacy.get(tag.partition("_")[0])


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
