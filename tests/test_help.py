"""`--help` answers at once: it loads no library that does the work, and it shows an example."""

import json
import subprocess
import sys

import pytest

PACKAGES = ["qwen3_model", "qwen3_data", "qwen3_train", "qwen3_infer", "qwen3_ckpt"]
HEAVY = [
    "mindspore",
    "numpy",
    "scipy",
    "matplotlib",
    "tokenizers",
    "safetensors",
    "jinja2",
    "pyarrow",
    "fastokens",
]

# One process a package, so that nothing but that package's own imports counts.
WALK = """
import importlib, json, sys
import click
from click.testing import CliRunner

main = importlib.import_module(sys.argv[1] + ".cli").main
texts = {}

def walk(command, words):
    result = CliRunner().invoke(main, [*words, "--help"], prog_name=main.name)
    assert result.exit_code == 0, (words, result.output)
    children = getattr(command, "commands", {})
    texts[" ".join(words)] = result.output if not children else "Example: those of its commands"
    for name, child in children.items():
        walk(child, [*words, name])

walk(main, [])
print(json.dumps({"texts": texts, "modules": sorted(m for m in sys.modules if "." not in m)}))
"""


@pytest.fixture(scope="module", params=PACKAGES)
def walked(request):
    """Return the help texts by command, and the modules that were loaded to show them all."""
    command = [sys.executable, "-c", WALK, request.param]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_help_loads_no_heavy_library(walked):
    assert not set(HEAVY) & set(walked["modules"])


def test_every_command_shows_an_example(walked):
    commands = {words: text for words, text in walked["texts"].items() if words}
    assert commands
    lacking = [words for words, text in commands.items() if "Example" not in text]
    assert not lacking
