"""Each package that needs no MindSpore installs alone from its wheel, and its command works there."""

import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["qwen3-model", "qwen3-data", "qwen3-ckpt"]


@pytest.mark.slow
def test_the_wheels_install_alone_and_run_without_mindspore(tmp_path):
    command = [str(ROOT / "tools/check_wheels"), "--keep", str(tmp_path / "dist"), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == PACKAGES
    assert all(row[4:] == ["not", "there"] for row in rows)
    assert all(float(row[1]) < 500 and float(row[2]) < 200 for row in rows), done.stdout
    assert len(list((tmp_path / "dist").glob("*.whl"))) == 3


def test_every_source_and_asset_is_in_its_wheel(tmp_path):
    command = [str(ROOT / "tools/check_wheels"), "--only-build", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wheels = {path.name.partition("-")[0]: path for path in tmp_path.glob("*.whl")}
    assert len(wheels) == 5
    names = set(zipfile.ZipFile(wheels["qwen3_infer"]).namelist())
    assert {"qwen3_infer/native/kernels.cc", "qwen3_infer/serve/web/chat.html"} <= names
    assert all(f"{name}/py.typed" in zipfile.ZipFile(path).namelist() for name, path in wheels.items())


def test_an_unknown_package_is_refused():
    command = [str(ROOT / "tools/check_wheels"), "qwen3-modell"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no such package: qwen3-modell; there are qwen3-model" in done.stderr
