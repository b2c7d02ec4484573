"""uv.lock serves four kinds of machine, any index and none."""

import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/lib"))

from wheels import TARGETS, Target, rank_for, read_lock, wheels_for  # noqa: E402

LOCK = ROOT / "uv.lock"


def test_lock_has_no_address():
    text = LOCK.read_text(encoding="utf-8")
    assert "://" not in text
    assert 'registry = "wheelhouse"' in text


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_every_locked_package_has_a_wheel_for(target):
    wheels = read_lock(LOCK)
    chosen = wheels_for(wheels, target)
    assert {w.name for w in chosen} == {w.name for w in wheels}
    assert len({w.name for w in chosen}) == len(chosen)  # one version each


def test_every_wheel_of_the_lock_is_taken_by_some_target():
    wheels = read_lock(LOCK)
    taken = {w.file for target in TARGETS for w in wheels_for(wheels, target)}
    assert {w.file for w in wheels} == taken


def test_lock_holds_no_torch_and_an_old_numpy():
    versions = {w.name: w.version for w in read_lock(LOCK)}
    assert not {"torch", "transformers"} & versions.keys()
    assert versions["numpy"].startswith("1.")  # MindSpore 2.10 breaks with numpy 2


def test_lock_covers_the_tools_that_make_the_environment():
    packages = {p["name"] for p in tomllib.loads(LOCK.read_text(encoding="utf-8"))["package"]}
    assert {"uv", "uv-build"} <= packages


X86, ARM = Target(11, "x86_64"), Target(11, "aarch64")


@pytest.mark.parametrize(
    ("file", "target", "fits"),
    [
        ("a-1-py3-none-any.whl", X86, True),
        ("a-1-py2.py3-none-any.whl", ARM, True),
        ("a-1-py310-none-any.whl", X86, True),
        ("a-1-py312-none-any.whl", X86, False),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", X86, True),
        ("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", ARM, False),
        ("a-1-cp312-cp312-manylinux_2_17_x86_64.whl", X86, False),
        ("a-1-cp39-abi3-manylinux2014_aarch64.whl", ARM, True),
        ("a-1-cp315-abi3.abi3t-manylinux2014_aarch64.whl", ARM, False),
        ("a-1-cp311-cp311-musllinux_1_2_x86_64.whl", X86, False),
        ("a-1-pp311-pypy311_pp73-manylinux_2_28_x86_64.whl", X86, False),
        ("a-1-cp311-cp311-win_amd64.whl", X86, False),
        ("a-1-py3-none-manylinux_2_17_aarch64.musllinux_1_1_aarch64.whl", ARM, True),
    ],
)
def test_wheel_tags_are_read_as_pip_reads_them(file, target, fits):
    assert (rank_for(file, target) is not None) == fits


def test_a_wheel_for_this_python_goes_before_one_for_an_older():
    assert rank_for("a-1-py311-none-any.whl", X86) > rank_for("a-1-py310-none-any.whl", X86)
    assert rank_for("a-1-py310-none-any.whl", X86) > rank_for("a-1-py3-none-any.whl", X86)


def test_a_build_for_the_machine_goes_before_one_for_any():
    ours = rank_for("mindspore-2.10.0-cp311-cp311-manylinux1_x86_64.whl", X86)
    assert ours > rank_for("mindspore-2.10.0-cp311-none-any.whl", X86)
    assert rank_for("mindspore-2.10.0-cp311-cp311-manylinux1_x86_64.whl", ARM) is None
