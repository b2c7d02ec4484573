"""The command starts quickly, needs no MindSpore, and every page of help has an example."""

import subprocess
import sys

import click
import pytest

from qwen3_data.cli import main

"""Longest time of --help, with a process's start; the best of three, since other tests run beside it."""


def test_no_command_needs_mindspore():
    code = """
import importlib, pkgutil, sys
import qwen3_data
for module in pkgutil.walk_packages(qwen3_data.__path__, "qwen3_data."):
    importlib.import_module(module.name)
assert 'mindspore' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_an_example(run, name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"qwen3-data {'sft' if name == 'alpaca' else name} " in result.output


def test_underscores_and_hyphens_are_alike(run):
    for word in ("--output_prefix", "--output-prefix"):
        result = run("preprocess", word)
        assert result.exit_code == 2
        assert "requires an argument" in result.output


def test_every_option_has_a_name_in_hyphens():
    for command in main.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all("_" not in name for name in parameter.opts)
