"""The work behind tools/setup: wheelhouse/ through pip, then .venv through uv from wheelhouse/ alone."""

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from fetch import SetupError, fill_wheelhouse, require_free_space
from wheels import TARGETS, Target, Wheel, read_lock, wheels_for

ROOT = Path(__file__).resolve().parents[2]
UNPACKED = 4  # bytes in .venv for each byte of wheel (MindSpore: 3.7)


def main() -> None:
    """Do what the flags ask, or say in one sentence why not."""
    try:
        _set_up(_arguments())
    except SetupError as error:
        sys.exit(f"tools/setup: {error}")
    except KeyboardInterrupt:
        sys.exit("tools/setup: stopped; run it again to go on where it was")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/setup", description="Make .venv from wheelhouse/.")
    parser.add_argument("--fetch-only", action="store_true", help="fill wheelhouse/ and stop")
    parser.add_argument(
        "--for", dest="kind", nargs=2, metavar=("MACHINE", "PYTHON"), help="e.g. aarch64 3.11"
    )
    arguments = parser.parse_args()
    if arguments.kind and not arguments.fetch_only:
        parser.error("--for needs --fetch-only: .venv can be made for this machine alone")
    return arguments


def _set_up(arguments: argparse.Namespace) -> None:
    target = _named_target(*arguments.kind) if arguments.kind else _this_machine()
    venv = ROOT / ".venv"
    stamp, key = venv / ".qwen3-setup", _fingerprint()
    if not arguments.fetch_only and _says(stamp, key) and (venv / "bin/python").exists():
        return
    wheelhouse = ROOT / "wheelhouse"
    wheelhouse.mkdir(exist_ok=True)
    with (wheelhouse / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second tools/setup waits here, then finds everything in place
        wheels = wheels_for(read_lock(ROOT / "uv.lock"), target)
        if arguments.fetch_only:
            fill_wheelhouse(wheelhouse, wheels, [sys.executable], target=target if arguments.kind else None)
            print(f"wheelhouse/ holds all {len(wheels)} wheels for {target}")
            return
        _make_venv(venv, stamp)
        _require_space_to_unpack(venv, wheels)
        fill_wheelhouse(wheelhouse, wheels, [str(venv / "bin/python")])
        _install(venv, wheelhouse, wheels)
        stamp.write_text(key, encoding="utf-8")
    version = platform.python_version()
    print(f".venv is ready: {len(wheels)} packages and the five of this checkout (Python {version})")


def _this_machine() -> Target:
    target = Target(sys.version_info.minor, platform.machine())
    if platform.system() != "Linux" or target not in TARGETS or platform.libc_ver()[0] != "glibc":
        library = platform.libc_ver()[0] or "another C library"
        raise SetupError(
            "MindSpore has wheels for Linux with glibc on x86_64 and aarch64 alone, and this is "
            f"{platform.system()} with {library} on {platform.machine()}; use such a machine or a container"
        )
    return target


def _named_target(machine: str, python: str) -> Target:
    for target in TARGETS:
        if (machine, python) == (target.machine, f"3.{target.python_minor}"):
            return target
    raise SetupError(
        f"--for {machine} {python} is not in uv.lock, which has: " + "; ".join(map(str, TARGETS))
    )


def _fingerprint() -> str:
    """Return a hash of all that .venv is made from."""
    digest = hashlib.sha256(f"{ROOT} {sys.version}".encode())
    sources = [ROOT / "uv.lock", ROOT / "pyproject.toml", *sorted(ROOT.glob("packages/*/pyproject.toml"))]
    scripts = [Path(__file__).with_name(name) for name in ("setup.py", "fetch.py", "wheels.py")]
    for path in (*sources, *scripts):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _make_venv(venv: Path, stamp: Path) -> None:
    """Make .venv unless one of this interpreter is there; a checkout that was moved gets a new one."""
    stamp.unlink(missing_ok=True)
    home = venv / ".qwen3-home"  # Scripts in .venv name their interpreter by its full path
    wanted = f"{venv} {sys.version}"
    if _says(home, wanted) and (venv / "bin/python").exists():
        return
    if Path(sys.prefix).resolve() == venv.resolve():  # running from the .venv that is to be replaced
        base = getattr(sys, "_base_executable", sys.executable)
        os.execv(base, [base, "-sE", *sys.argv])
    command = [sys.executable, "-I", "-m", "venv", "--clear", str(venv)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SetupError(f"{sys.executable} could not make .venv: {_last_line(made.stdout + made.stderr)}")
    home.write_text(wanted, encoding="utf-8")


def _require_space_to_unpack(venv: Path, wheels: Iterable[Wheel]) -> None:
    installed = {path.name.lower() for path in venv.glob("lib/python3.*/site-packages/*.dist-info")}
    needed = sum(
        w.size_bytes for w in wheels if f"{w.name.replace('-', '_')}-{w.version}.dist-info" not in installed
    )
    require_free_space(venv, UNPACKED * needed, "to unpack the packages")


def _install(venv: Path, wheelhouse: Path, wheels: list[Wheel]) -> None:
    """Install uv from its wheel, then let it make .venv what the lock says, without a network.

    `--locked` compares the lock with the pyproject.toml files; for that the wheels of other kinds of machine
    need not be there. uv checks each wheel's SHA-256.
    """
    uv_wheel = next(w for w in wheels if w.name == "uv")
    python = str(venv / "bin/python")
    pip = [
        python,
        "-I",
        "-m",
        "pip",
        "--isolated",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-index",
    ]
    _run([*pip, "--no-deps", str(wheelhouse / uv_wheel.file)], "pip could not install uv from wheelhouse/")
    cache = wheelhouse / ".uv-cache"  # On the disk of .venv, as a rule, so that files are linked, not copied
    uv = [str(venv / "bin/uv")]
    flags = ["--offline", "--project", str(ROOT), "--cache-dir", str(cache), "--python", python]
    try:
        _run(
            [*uv, "lock", "--check", *flags],
            "uv.lock does not fit the pyproject.toml files; maintainers run tools/lock after changing one",
            shown=False,
        )
        print("unpacking into .venv ...", flush=True)
        sync = [*uv, "sync", "--locked", "--all-packages", "--all-extras", "--quiet", *flags]
        _run(
            sync,
            "uv could not install from wheelhouse/; delete .venv and wheelhouse/, then run tools/setup again",
        )
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _run(command: list[str], failure: str, *, shown: bool = True) -> None:
    """Run a command; when it fails raise `failure`, and what the command said unless `shown` is false."""
    # No index, proxy or settings of the user's own reach uv: what it installs depends on the lock alone.
    own = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR") if key in os.environ}
    environment = own | {
        "UV_PYTHON_DOWNLOADS": "never",
        "XDG_CONFIG_HOME": os.devnull,
        "XDG_CONFIG_DIRS": os.devnull,
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr).strip()
        if "No space left" in output:
            raise SetupError("the disk is full; make room and run tools/setup again")
        raise SetupError(f"{failure}\n{output}" if shown else failure)


def _says(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


if __name__ == "__main__":
    main()
