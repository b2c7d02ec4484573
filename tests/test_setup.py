"""tools/setup and its wheelhouse: what they refuse, in which sentence, what they leave alone. No network."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools/lib"))

import fetch  # noqa: E402
from wheels import Target, Wheel  # noqa: E402


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Return a folder that is all that pip finds packages in."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return directory


@pytest.fixture
def wheelhouse(tmp_path):
    directory = tmp_path / "wheelhouse"
    directory.mkdir()
    return directory


PIP = [str(next(p for p in (Path(sys.prefix) / "bin").glob("python3*") if p.is_file()))]


def _wheel(index: Path, name: str = "tiny", content: bytes | None = None) -> Wheel:
    """Put a wheel into the index; return what a lock says of it."""
    import zipfile

    file = f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(index / file, "w") as archive:
        archive.writestr(f"{name}.py", "x = 1\n")
        archive.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    raw = content or (index / file).read_bytes()
    return Wheel(name, "1.0", file, hashlib.sha256(raw).hexdigest(), len(raw))


def test_missing_wheels_are_fetched_and_present_ones_are_not_asked_for(index, wheelhouse, capsys):
    first, second = _wheel(index, "first"), _wheel(index, "second")
    shutil.copy(index / first.file, wheelhouse)
    (index / first.file).unlink()
    fetch.fill_wheelhouse(wheelhouse, [first, second], PIP)
    assert sorted(p.name for p in wheelhouse.iterdir()) == [first.file, second.file]
    assert "fetching 1 wheels" in capsys.readouterr().out


def test_a_damaged_wheel_is_fetched_again(index, wheelhouse, capsys):
    wheel = _wheel(index)
    (wheelhouse / wheel.file).write_bytes(b"half of it")
    fetch.fill_wheelhouse(wheelhouse, [wheel], PIP)
    assert (wheelhouse / wheel.file).read_bytes() == (index / wheel.file).read_bytes()
    assert "damaged" in capsys.readouterr().out


def test_another_file_under_the_same_name_is_refused(index, wheelhouse):
    wheel = _wheel(index, content=b"what the lock knows")
    with pytest.raises(fetch.SetupError, match=r"serves other files than uv\.lock names for tiny"):
        fetch.fill_wheelhouse(wheelhouse, [wheel], PIP)
    assert list(wheelhouse.iterdir()) == []


def test_a_wheel_that_the_index_lacks_is_named_with_the_remedy(index, wheelhouse):
    wheel = _wheel(index)
    (index / wheel.file).unlink()
    with pytest.raises(fetch.SetupError, match=r"does not give tiny-1\.0-py3-none-any\.whl; name another"):
        fetch.fill_wheelhouse(wheelhouse, [wheel], PIP)
    assert list(wheelhouse.iterdir()) == []


def test_no_network_is_said_in_one_sentence(index, wheelhouse, monkeypatch):
    wheel = _wheel(index)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(fetch.SetupError, match=r"could not reach its index .*copy a filled wheelhouse/"):
        fetch.fill_wheelhouse(wheelhouse, [wheel], PIP)


def test_too_little_space_is_refused_before_pip_starts(index, wheelhouse):
    wheel = _wheel(index)
    huge = Wheel(wheel.name, wheel.version, wheel.file, wheel.sha256, 10**18)
    with pytest.raises(fetch.SetupError, match=r"needs 1000000000\.0 GB .* are free; make room"):
        fetch.fill_wheelhouse(wheelhouse, [huge], ["no-such-program"])


def test_wheels_for_another_kind_of_machine_can_be_fetched(index, wheelhouse):
    wheel = _wheel(index, "arm")
    name = "arm-1.0-cp312-cp312-manylinux_2_17_aarch64.manylinux2014_aarch64.whl"
    (index / wheel.file).rename(index / name)
    theirs = Wheel("arm", "1.0", name, wheel.sha256, wheel.size_bytes)
    fetch.fill_wheelhouse(wheelhouse, [theirs], PIP, target=Target(12, "aarch64"))
    assert (wheelhouse / name).is_file()


def _run_setup(python, path="/usr/bin:/bin"):
    return subprocess.run(
        [ROOT / "tools/setup", "--fetch-only"],
        env={"PATH": path, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_setup_refuses_an_unsupported_python_by_name(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && { echo "Python 3.9.2"; exit 0; }\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    result = _run_setup(old)
    assert result.returncode == 1
    assert "no usable Python 3.11 or 3.12" in result.stderr
    assert "is Python 3.9.2" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_setup_says_when_the_named_python_is_not_there(tmp_path):
    result = _run_setup(tmp_path / "nowhere")
    assert result.returncode == 1
    assert "is not there" in result.stderr


def test_setup_refuses_a_kind_of_machine_that_the_lock_has_not():
    result = subprocess.run(
        [sys.executable, ROOT / "tools/lib/setup.py", "--fetch-only", "--for", "riscv64", "3.11"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "riscv64 3.11 is not in uv.lock" in result.stderr
