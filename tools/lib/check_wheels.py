"""The work behind tools/check_wheels: each package as its users get it, with neither checkout nor network."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELHOUSE = ROOT / "wheelhouse"
PACKAGES = ("qwen3-model", "qwen3-data", "qwen3-ckpt", "qwen3-train", "qwen3-infer")
WITHOUT_MINDSPORE = ("qwen3-model", "qwen3-data", "qwen3-ckpt")
DEMO = ROOT / "tools/demo_data"
# A piece of the package's own work, which loads what it installs.
WORK = {
    "qwen3-model": [["info", "0.6B"]],
    "qwen3-data": [
        ["wikitext", str(DEMO / "wikitext2_valid.txt"), "wiki.jsonl"],
        [
            "preprocess",
            "--input",
            "wiki.jsonl",
            "--output-prefix",
            "wiki",
            "--tokenizer-dir",
            str(DEMO / "tokenizer"),
        ],
        ["verify", "wiki_text_document"],
    ],
}


def main() -> None:
    """Check the packages that the command line names."""
    parser = argparse.ArgumentParser(prog="tools/check_wheels", description=__doc__)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help="all five by default")
    parser.add_argument("--keep", type=Path, help="folder to leave the wheels in")
    parser.add_argument(
        "--only-build", action="store_true", help="build and look into the wheels; install nothing"
    )
    options = parser.parse_args()
    unknown = set(options.packages) - set(PACKAGES)
    if unknown:
        parser.error(f"no such package: {', '.join(sorted(unknown))}; there are {', '.join(PACKAGES)}")
    with tempfile.TemporaryDirectory(prefix=".check_wheels-", dir=WHEELHOUSE) as folder:
        packages, dist = options.packages or list(PACKAGES), Path(folder) / "dist"
        build(packages, Path(folder), dist)
        if not options.only_build:
            check(packages, Path(folder), dist)
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            for wheel in dist.glob("*.whl"):
                shutil.copy(wheel, options.keep)


def build(packages: list[str], folder: Path, dist: Path) -> None:
    """Build each package and what it needs of the others, and look into the wheels."""
    for package in dict.fromkeys(["qwen3-model", *packages]):
        uv(folder, "build", "--quiet", "--wheel", "--package", package, "--project", ROOT, "--out-dir", dist)
        look_into(package, wheel_of(package, dist))


def wheel_of(package: str, dist: Path) -> Path:
    """Return the one wheel of a package."""
    (wheel,) = dist.glob(f"{package.replace('-', '_')}-*.whl")
    return wheel


def look_into(package: str, wheel: Path) -> None:
    """Compare a wheel with the sources: C++, web page and py.typed go along, as does the licence."""
    source = ROOT / "packages" / package / "src"
    wanted = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
        (metadata,) = (name for name in found if name.endswith(".dist-info/METADATA"))
        head = archive.read(metadata).decode("utf-8").partition("\n\n")[0]
    added = {name for name in found if ".dist-info/" in name}
    if wanted != found - added:
        sys.exit(f"{wheel.name} differs from {source}: {', '.join(sorted(wanted ^ (found - added)))}")
    if not any(name.endswith("/licenses/LICENSE") for name in added) or "://" in head:
        sys.exit(f"{wheel.name} lacks the licence, or names an address:\n{head}")


def check(packages: list[str], folder: Path, dist: Path) -> None:
    """Install and run each package, on the disk of the wheelhouse: files are linked, not copied."""
    print("package       wheel kB   installed MB   packages   MindSpore")
    for package in packages:
        venv = folder / package
        uv(folder, "venv", "--quiet", "--python", sys.executable, venv)
        python = venv / "bin/python"
        uv(folder, "pip", "install", "--quiet", "--python", python, "--find-links", dist, package)
        uv(folder, "pip", "check", "--quiet", "--python", python)
        run_alone(package, venv, folder / "work")
        site = next(venv.glob("lib/python3.*/site-packages"))
        has_mindspore = (site / "mindspore").exists()
        if has_mindspore == (package in WITHOUT_MINDSPORE):
            sys.exit(f"{package} {'pulls in' if has_mindspore else 'lacks'} MindSpore")
        size_mb = sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6
        count = len(list(site.glob("*.dist-info")))
        print(
            f"{package:12} {wheel_of(package, dist).stat().st_size / 1e3:9.0f} {size_mb:14.0f} {count:10}   "
            f"{'needed' if has_mindspore else 'not there'}",
            flush=True,
        )
        shutil.rmtree(venv)


def run_alone(package: str, venv: Path, work: Path) -> None:
    """Run the installed command where nothing of the checkout is on its path."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(work)}
    for words in (["--version"], ["--help"], *WORK.get(package, [])):
        command = [str(venv / "bin" / package), *words]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or (words == ["--help"] and "Usage:" not in done.stdout):
            sys.exit(
                f"{package} {' '.join(words)} failed where it is installed alone:\n{done.stdout}{done.stderr}"
            )


def uv(folder: Path, *words: str | Path) -> None:
    """Run uv with the wheelhouse as the one source of packages, and no settings of the user's own."""
    own = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    environment = own | {
        "UV_NO_INDEX": "1",
        "UV_OFFLINE": "1",
        "UV_FIND_LINKS": str(WHEELHOUSE),
        "UV_CACHE_DIR": str(folder / "cache"),
        "UV_PYTHON_DOWNLOADS": "never",
        "XDG_CONFIG_HOME": os.devnull,
        "XDG_CONFIG_DIRS": os.devnull,
    }
    command = [str(ROOT / ".venv/bin/uv"), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        sys.exit(f"uv {' '.join(map(str, words))} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
