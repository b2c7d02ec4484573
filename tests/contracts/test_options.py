"""Every command of the five programs takes the common options, and one name means one thing everywhere."""

import importlib
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

PROGRAMS = ["qwen3-model", "qwen3-data", "qwen3-train", "qwen3-ckpt", "qwen3-infer"]
OTHER_PROGRAMS_WORDS = {"qwen3-infer eval"}  # hands its words to lm_eval
MINDFORMERS_NAMES = {
    "qwen3-data preprocess": [
        "input", "output_prefix", "tokenizer_type", "tokenizer_dir", "json_keys", "append_eod", "workers",
        "split_sentences", "keep_newlines", "lang", "partitions", "log_interval", "keep_sequential_samples",
        "vocab_file", "merges_file", "tokenizer_file", "trust_remote_code",
    ],
    "qwen3-train launch": [
        "config", "worker_num", "local_worker_num", "master_addr", "master_port", "node_rank", "log_dir",
        "join", "cluster_time_out",
    ],
    "qwen3-ckpt merge": [
        "mindspore_ckpt_dir", "src_strategy_dirs", "output_dir", "file_suffix", "has_redundancy",
        "filter_out_param_prefix", "max_process_num", "format",
    ],
    "qwen3-infer generate": ["config", "predict_data", "pretrained_model_dir", "predict_batch_size"],
}  # fmt: skip


def program(name):
    return importlib.import_module(name.replace("-", "_") + ".cli").main


def commands(command, words):
    """Yield the words and the click command of every leaf."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, f"{words} {name}")
    else:
        yield words, command


ALL = dict(found for name in PROGRAMS for found in commands(program(name), name))


def options(command):
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def names(command):
    return {name for option in options(command) for name in (*option.opts, *option.secondary_opts)}


def test_the_walk_finds_the_commands():
    assert {"qwen3-data preprocess", "qwen3-train launch", "qwen3-ckpt lora fuse", "qwen3-infer chat"} <= set(
        ALL
    )
    assert len(ALL) > 20


@pytest.mark.parametrize("words", ALL)
def test_it_takes_the_common_options(words):
    assert "--log-level" in names(ALL[words])
    assert words in OTHER_PROGRAMS_WORDS or {"-q", "--quiet"} <= names(ALL[words])


@pytest.mark.parametrize("words", ALL)
def test_its_help_is_a_sentence_with_an_example_of_its_own(words):
    text = ALL[words].help
    first = text.partition("\n")[0].strip()
    assert first[0].isupper()
    example = text.partition("Example")[2]
    names_of_it = [words, words.replace("alpaca", "sft")]  # two names of one command
    assert any(name in example for name in names_of_it)


@pytest.mark.parametrize("words", ALL)
def test_each_option_that_is_shown_is_explained(words):
    assert not [option.opts for option in options(ALL[words]) if not option.hidden and not option.help]


@pytest.mark.parametrize("words", ALL)
def test_its_options_are_spelled_with_hyphens_and_may_be_written_with_underscores(words):
    for name in names(ALL[words]):
        assert re.fullmatch(r"-[a-z]|--[a-z0-9]+(-[a-z0-9]+)*", name)
    arguments = ["--no-such-option-at-all"] if words in OTHER_PROGRAMS_WORDS else []
    context = click.Context(program(words.split()[0]), info_name=words.split()[0])
    settings = program(words.split()[0]).context_settings
    assert settings["token_normalize_func"]("--log_level") == "--log-level"
    result = CliRunner().invoke(
        program(words.split()[0]), [*words.split()[1:], *arguments, "--log_level", "no-level"], obj=context
    )
    assert result.exit_code == 2
    assert "'no-level' is not one of" in result.stderr


def test_one_name_has_one_kind_of_value_and_one_short_form():
    kinds, shorts = defaultdict(dict), defaultdict(set)
    for words, command in ALL.items():
        for option in options(command):
            kind = "flag" if option.is_flag else "value"
            for name in option.opts:
                kinds[name].setdefault(kind, words)
            for name in option.opts:
                if len(name) == 2:
                    shorts[name].add(max(option.opts, key=len))
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    assert all(len(found) == 1 for found in shorts.values())


@pytest.mark.parametrize("name", ["--force", "--quiet", "--log-level", "--kernels", "--threads", "--engine"])
def test_what_several_commands_share_is_said_alike(name):
    found = [option for command in ALL.values() for option in options(command) if name in option.opts]
    assert len(found) > 1
    assert len({repr(option.to_info_dict()["type"]) for option in found}) == 1
    if name == "--force":
        assert all(re.fullmatch("Replace .*, once the new one is whole.", option.help) for option in found)
    elif name != "--engine":
        assert len({option.help for option in found}) == 1


@pytest.mark.parametrize("words", MINDFORMERS_NAMES)
def test_the_flags_of_mindformers_are_taken_with_underscores(words):
    settings = program(words.split()[0]).context_settings
    spelled = {settings["token_normalize_func"]("--" + name) for name in MINDFORMERS_NAMES[words]}
    assert spelled <= names(ALL[words])


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_states_its_version(name):
    result = CliRunner().invoke(program(name), ["--version"])
    module = importlib.import_module(name.replace("-", "_"))
    assert result.stdout == f"{name}, version {module.__version__}\n"


def run_shell(script, **variables):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euc", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path} | variables,
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_bash_completes_commands_and_options(name):
    identifier = name.replace("-", "_")
    sub = next(words.split()[1] for words in ALL if words.startswith(name + " "))
    # What the README says to put into ~/.bashrc, then what bash does when Tab is pressed.
    script = f"""
        eval "$(_{identifier.upper()}_COMPLETE=bash_source {name})"
        complete -p {name}
        press_tab() {{ _{identifier}_completion {name}; printf '%s\\n' "${{COMPREPLY[@]}}"; }}
        COMP_WORDS=({name} {sub[:2]}) COMP_CWORD=1; press_tab
        COMP_WORDS=({name} {sub} --log-l) COMP_CWORD=2; press_tab
    """
    done = run_shell(script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sub in lines
    assert "--log-level" in lines


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_of_the_readme_gets_its_script(shell):
    done = run_shell("qwen3-data", _QWEN3_DATA_COMPLETE=f"{shell}_source")
    assert done.returncode == 0, done.stderr
    assert f"{shell}_complete" in done.stdout
