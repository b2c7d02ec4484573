"""What a package depends on is imported by it, or the line above says why it is there."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
MODULES = {"pyyaml": "yaml"}
"""Imported under another name than the package's."""


def imported(package: Path) -> set[str]:
    found = set()
    for path in package.glob("src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return {name.lower() for name in found}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_each_dependency_is_imported_or_has_a_reason(package):
    text = (package / "pyproject.toml").read_text(encoding="utf-8")
    names = [
        re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in tomllib.loads(text)["project"]["dependencies"]
    ]
    modules = {name: MODULES.get(name, name).replace("-", "_") for name in names}
    known = imported(package)
    assert known
    idle = [name for name, module in modules.items() if module not in known]
    without_reason = [
        name for name in idle if not re.search(rf'^ +# .*\n +"{re.escape(name)}', text, re.MULTILINE)
    ]
    assert not without_reason
