"""Every command in a README exists, with the flags that it shows; every file that one names is there."""

import importlib
import os
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "README_CN.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("packages/*/README.md")),
]
PAGES += sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("examples/**/*.md"))
PROGRAMS = ["qwen3-model", "qwen3-data", "qwen3-train", "qwen3-ckpt", "qwen3-infer"]
DEFAULT_YAML = "pretrain_qwen3_32b_4k.yaml"


def _shell_lines(page):
    """Yield the commands in the fenced shell blocks of a page, continued lines joined."""
    fenced = re.findall(
        r"^ *```(\w*)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    for block in (block for language, block in fenced if language in ("", "sh", "bash", "shell")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line


def _commands(page):
    for line in _shell_lines(page):
        words = shlex.split(line, comments=True)
        starts = [number for number, word in enumerate(words) if re.fullmatch(r"qwen3-[a-z]+", word)]
        if starts and not words[0].startswith("tools/"):
            end = next((n for n, word in enumerate(words) if word in ("|", "&&", "&", ">", ";")), len(words))
            yield [re.sub(r"\$\w+", "1", word) for word in words[starts[0] : end]]


def _ids(page):
    return str(page.relative_to(ROOT))


@pytest.fixture
def any_path_exists(monkeypatch):
    """Let commands be parsed whose files are not there."""
    real = click.Path.convert

    def convert(self, value, param, ctx):
        monkeypatch.setattr(self, "exists", False)  # the command outlives this test
        return real(self, value, param, ctx)

    monkeypatch.setattr(click.Path, "convert", convert)


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_every_command_shown_is_understood(page, any_path_exists):
    for words in _commands(page):
        if set(words[1:]) & {"--help", "--version"}:
            continue
        # Required options, types, choices and counts of arguments are all checked here.
        context = _parse(words)
        if words[0] == "qwen3-train" and "overrides" in context.params:
            _check_keys(context.params)


def _parse(words):
    """Return what click makes of a command line."""
    main = importlib.import_module(words[0].replace("-", "_") + ".cli").main
    command, rest = main, words[1:]
    while isinstance(command, click.Group) and rest:
        assert rest[0] in command.commands, f"{words[0]} has no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    parent = click.Context(main, info_name=words[0], **main.context_settings)
    return command.make_context(command.name, list(rest), parent=parent)


def _check_keys(params):
    """Read the YAML that a command names with the keys that follow; MindSpore is not needed for that."""
    from qwen3_train.launch.run_arguments import read_config

    config = params.get("config_path") or params["config"]
    path = ROOT / config
    if not path.exists():
        path = ROOT / "configs/qwen3" / ("finetune_qwen3_8b_4k.yaml" if "fine" in path.name else DEFAULT_YAML)
    read_config(path, params["overrides"])


@pytest.mark.parametrize("page", sorted(ROOT.glob("configs/qwen3/*.yaml")), ids=_ids)
def test_the_command_at_the_head_of_a_yaml_is_understood(page, any_path_exists):
    head = page.read_text(encoding="utf-8").partition("\nseed:")[0].replace("\\\n#", " ")
    commands = [shlex.split(line[1:]) for line in head.splitlines() if line[1:].lstrip().startswith("qwen3-")]
    assert commands
    for words in commands:
        context = _parse(words)
        assert Path(context.params["config_path"]) == page.relative_to(ROOT)
        if words[0] == "qwen3-train":
            _check_keys(context.params)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_texts_are_laid_out_and_name_files_that_are_there(program):
    main = importlib.import_module(program.replace("-", "_") + ".cli").main
    leaves = [main]
    for command in leaves:
        leaves += getattr(command, "commands", {}).values()
        text = CliRunner().invoke(command, ["--help"]).output
        assert "\\b" not in text, f"{command.name} shows click's mark"
        for name in re.findall(r"\b(?:tools|configs)/[\w./-]+\w", text):
            assert (ROOT / name).exists(), f"{program} {command.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_every_relative_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_every_tool_and_config_named_is_in_the_checkout(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:tools|configs)/[\w./-]+\w", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "migration.md"], ids=_ids)
def test_every_module_named_lies_where_the_page_says(page):
    roots = [ROOT, *ROOT.glob("packages/*/src"), *ROOT.glob("packages/*/src/*"), *ROOT.glob("packages/*")]
    for name in re.findall(r"`([\w./]+/[\w./]*\w\.py)`", page.read_text(encoding="utf-8")):
        assert any((root / name).exists() for root in roots), f"{page.name} names {name}"
    for name in re.findall(
        r"\b(qwen3_(?:data|train|ckpt|infer|model)[\w./]*)", page.read_text(encoding="utf-8")
    ):
        path = name.removesuffix(".py").replace(".", "/").rstrip("/")
        # A name inside of a module is fine, too.
        files = [f"{path}.py", path, f"{path.rpartition('/')[0]}.py"]
        assert any(any(ROOT.glob(f"packages/*/src/{each}")) for each in files), f"{page.name} names {name}"


def _shape(page, other):
    """Return what both languages must have alike: headings, code, tables, links and lists, in order."""
    text = page.read_text(encoding="utf-8")
    shape = []
    for block in re.split(r"(```.*?```)", text, flags=re.DOTALL):
        if block.startswith("```"):
            shape.append(("code", re.sub(r" +#.*", "", block)))  # comments are translated
            continue
        for line in block.splitlines():
            if match := re.match(r"(#+) ", line):
                shape.append(("heading", len(match[1])))
            elif line.startswith("|"):
                shape.append(("row", line.count("|")))
            elif match := re.match(r"(\d+\.|\*) ", line):
                shape.append(("item", match[1]))
        for link in re.findall(r"\]\(([^)]+)\)", block):
            target = os.path.relpath(page.parent / link, ROOT)
            if target != str(other.relative_to(ROOT)):
                shape.append(("link", target.replace("docs/zh/", "docs/")))
    return shape


TRANSLATED = [(ROOT / "README.md", ROOT / "README_CN.md")]
TRANSLATED += [(ROOT / "docs" / page.name, page) for page in sorted(ROOT.glob("docs/zh/*.md"))]


@pytest.mark.parametrize(("english", "chinese"), TRANSLATED, ids=_ids)
def test_a_page_is_the_same_in_both_languages(english, chinese):
    assert f"]({os.path.relpath(chinese, english.parent)})" in english.read_text(encoding="utf-8")
    assert f"]({os.path.relpath(english, chinese.parent)})" in chinese.read_text(encoding="utf-8")
    for ours, theirs in zip(_shape(english, chinese), _shape(chinese, english), strict=True):
        assert ours == theirs


def test_the_readme_is_short_and_its_commands_are_those_of_pages_that_are_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 180
    assert "failed" not in text
    # test_readme_released.py runs all of docs/devices.md, and of the README "First steps" and "On a laptop".
    devices = list(_commands(ROOT / "docs/devices.md"))
    section = text.partition("## On sixteen devices")[2].partition("\n## ")[0]
    lines = section.replace("\\\n", " ").splitlines()
    shown = [shlex.split(line) for line in lines if line.startswith("qwen3-")]
    assert len(shown) == 7
    assert [words for words in shown if words not in devices] == []


def test_the_index_of_the_documentation_has_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    listed = re.findall(r"\]\(([\w/.]+\.md)\)", index)
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")} - {"README.md"}
    assert pages - set(listed) == set()


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_package_has_its_page_and_its_changelog(name):
    page = (ROOT / "packages" / name / "README.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    assert any(words[0] == name for words in _commands(ROOT / "packages" / name / "README.md"))
    changelog = (ROOT / "packages" / name / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog.startswith(f"# Changelog of {name}\n")
    assert re.search(r"^## \[", changelog, re.MULTILINE)


def test_every_command_is_shown_in_the_guides_or_on_its_packages_page():
    for name in PROGRAMS:
        main = importlib.import_module(name.replace("-", "_") + ".cli").main
        pages = [ROOT / "docs/walkthrough.md", ROOT / "docs/devices.md"]
        pages.append(ROOT / "packages" / name / "README.md")
        shown = {words[1] for page in pages for words in _commands(page) if words[0] == name}
        hidden = {"alpaca"}  # another name of sft
        assert set(main.commands) - hidden <= shown


def test_the_memory_of_the_recommended_layouts_is_what_plan_says():
    from qwen3_model.device.memory import gib
    from qwen3_train.launch.run_arguments import read_config
    from qwen3_train.plan.memory import plan_memory
    from qwen3_train.plan.settings import read_plan_settings

    text = (ROOT / "docs/layouts.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| [\d.]+B \|.*", text, re.MULTILINE)
    assert len(lines) == 6
    computed = {}
    for line in lines:
        size, *_, pretrain, finetune, lora = [cell.strip() for cell in line.strip("|").split("|")]
        for kind, shown in (("pretrain", pretrain), ("finetune", finetune), ("lora", lora)):
            path = ROOT / f"configs/qwen3/{kind}_qwen3_{size.lower()}_4k.yaml"
            stages = plan_memory(read_plan_settings(read_config(path, [])))
            computed[path] = gib(max(stage.total for stage in stages))
            assert f"{float(computed[path]):.1f}" == shown, (size, kind)
    # The command says the same, beside all else that it computes.
    main = importlib.import_module("qwen3_train.cli").main
    for path in list(computed)[:3]:
        said = CliRunner().invoke(main, ["plan", "--config", str(path)]).stdout
        assert f"Fits: {computed[path]} of 58.00 GiB on the fullest device." in said
