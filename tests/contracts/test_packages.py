"""What holds between the five packages and this workspace."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {
    path.parent.name: tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
}


def _numbers(version):
    return tuple(int(part) for part in version.split("."))


def test_there_are_five_packages():
    assert sorted(PROJECTS) == ["qwen3-ckpt", "qwen3-data", "qwen3-infer", "qwen3-model", "qwen3-train"]


@pytest.mark.parametrize("name", PROJECTS)
def test_its_range_of_qwen3_model_holds_the_one_in_this_checkout(name):
    ours = _numbers(PROJECTS["qwen3-model"]["version"])
    for requirement in PROJECTS[name]["dependencies"]:
        if requirement.startswith("qwen3-"):
            match = re.fullmatch(r"qwen3-model(?:\[mindspore\])?>=([\d.]+),<([\d.]+)", requirement)
            assert match, (
                f"{requirement}: give qwen3-model a lower and an upper bound, and no other of the five"
            )
            assert _numbers(match[1]) <= ours < _numbers(match[2])


def test_any_is_imported_where_its_reason_stands_and_nowhere_else():
    imports = re.compile(r"^from typing import [^\n]*\bAny\b|\btyping\.Any\b", re.MULTILINE)
    sources = [*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("tools/lib/*.py")]
    found = [path for path in sources if imports.search(path.read_text(encoding="utf-8"))]
    names = sorted("/".join(path.parts[-3:]) for path in found)
    assert names == ["qwen3_model/network/forms.py"]


@pytest.mark.parametrize("name", PROJECTS)
def test_it_states_licence_readme_python_and_one_command(name):
    project = PROJECTS[name]
    assert project["license"] == "Apache-2.0"
    assert project["requires-python"] == ">=3.11,<3.13"
    assert project["scripts"] == {name: f"{name.replace('-', '_')}.cli:main"}
    assert (ROOT / "packages" / name / project["readme"]).stat().st_size > 100
    changelog = (ROOT / "packages" / name / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "[Unreleased]" in changelog or project["version"] in changelog


@pytest.mark.parametrize("name", PROJECTS)
def test_version_in_code_is_that_of_the_package(name):
    module = __import__(name.replace("-", "_"))
    assert module.__version__ == PROJECTS[name]["version"] == importlib.metadata.version(name)


@pytest.mark.parametrize("name", ["qwen3-data", "qwen3-ckpt"])
def test_it_needs_no_mindspore(name):
    required = " ".join(PROJECTS[name]["dependencies"])
    assert "mindspore" not in required
    assert "torch" not in required
