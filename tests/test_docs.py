"""Every command in a README exists, with the flags that it shows; every file that one names is there."""

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "README_CN.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("packages/*/README.md")),
]
PAGES += sorted(ROOT.glob("docs/**/*.md"))


def _shell_lines(page):
    """Yield the commands in the fenced shell blocks of a page, continued lines joined."""
    for block in re.findall(r"```(?:sh|bash|shell)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line


def _commands(page):
    for line in _shell_lines(page):
        words = shlex.split(line, comments=True)
        starts = [number for number, word in enumerate(words) if re.fullmatch(r"qwen3-[a-z]+", word)]
        if starts:
            end = next((n for n, word in enumerate(words) if word in ("|", "&&", ">", ";")), len(words))
            yield words[starts[0] : end]


def _ids(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_every_command_shown_exists_with_its_flags(page):
    for program, *words in _commands(page):
        command = importlib.import_module(program.replace("-", "_") + ".cli").main
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            assert words[0] in command.commands, f"{program} has no command {words[0]}"
            command, words = command.commands[words[0]], words[1:]
        known = {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        known |= {"--help", "-h", "--version"}
        takes_any_key = bool(command.context_settings.get("ignore_unknown_options"))
        for word in words:
            flag = word.partition("=")[0]
            if flag.startswith("--") and not takes_any_key:
                assert flag.replace("_", "-") in known, f"{program} {command.name} has no flag {flag}"


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_every_relative_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_every_tool_and_config_named_is_in_the_checkout(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:tools|configs)/[\w./-]+\w", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_both_readmes_show_the_same_commands():
    assert list(_commands(ROOT / "README.md")) == list(_commands(ROOT / "README_CN.md"))
