"""Every command of the five programs takes the common options, and one name means one thing everywhere."""

import ast
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

from qwen3_model.command import base, parsing, types
from qwen3_model.command.spellings import read_bytes
from qwen3_model.config import find_size

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
    """Return all names that a command takes, its earlier ones among them."""
    return {
        name
        for option in options(command)
        for name in (*option.opts, *option.secondary_opts, *getattr(option, "old", ()))
    }


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


def read(words, *arguments):
    """Return what a command reads from arguments, as if nothing was required."""
    command = ALL[words]
    context = command.make_context(
        words, list(arguments), resilient_parsing=True, **program(words.split()[0]).context_settings
    )
    return context.params


ONE_TYPE = {
    r"--(.*-)?dtype": types.Dtype,
    r"--.*(-bytes|shard-size)": types.Bytes,
    r"--max-device-memory": types.DeviceMemory,
    r"--device": types.Device,
    r"--(.*-)?timeout": types.Seconds,
    r"--limit|--start|--threads": click.IntRange,
}
"""What an option so named takes, in every command."""
OTHER_THINGS = {"--id-dtype"}  # of token ids, not of weights
FORBIDDEN = {
    "--docs": "--limit", "--samples": "--limit", "--max-docs": "--limit", "--num-samples": "--limit",
    "--first": "--start", "--skip": "--start", "--time-out": "--timeout", "--workers": "--threads",
    "--num-threads": "--threads", "--max-process-num": "--threads", "--json-key": "--json-keys",
    "--key": "--json-keys", "--data": "--input", "--predict-data": "--input", "--device-target": "--device",
    "--png": "--output", "--out": "--output", "--output-file": "--output", "--out-dir": "--output-dir",
    "--cluster-time-out": "--cluster-timeout", "--lost-node-wait": "--lost-node-timeout",
}  # fmt: skip
"""Names that mean what another name means everywhere, which is the one to show."""


@pytest.mark.parametrize("words", ALL)
def test_an_option_is_of_the_type_that_its_name_says_and_has_no_second_name(words):
    for option in options(ALL[words]):
        shown = [] if option.hidden else option.opts
        assert not set(shown) & set(FORBIDDEN), "show the one name and keep the other as `old`"
        for name in set(option.opts) - OTHER_THINGS:
            kinds = [kind for pattern, kind in ONE_TYPE.items() if re.fullmatch(pattern, name)]
            assert all(isinstance(option.type, kind) for kind in kinds), f"{name} is no {kinds}"
            assert "time-out" not in name
            assert "timeout" not in name or option.help.startswith("Seconds")
            assert option.type is not click.BOOL or option.is_bool_flag, f"{name} must be a switch"
        if isinstance(option.type, types.Dtype | types.Bytes | types.DeviceMemory | types.Device):
            assert any(
                re.fullmatch(pattern, name) and isinstance(option.type, kind)
                for pattern, kind in ONE_TYPE.items()
                for name in option.opts
            ), f"{option.opts} is named unlike what it takes"


EARLIER = [
    (words, option.name, old, option.opts[0])
    for words, command in ALL.items()
    for option in options(command)
    for old in getattr(option, "old", ())
]


@pytest.mark.parametrize(("words", "name", "old", "new"), EARLIER)
def test_an_earlier_name_does_what_the_present_one_does(words, name, old, new):
    option = next(option for option in ALL[words].params if option.name == name)
    value = {
        types.Dtype: "bf16", types.Device: "CPU", click.types.IntRange: "3", types.Seconds: "2.5",
        click.Choice: "uint16",
    }.get(type(option.type), "some")  # fmt: skip
    assert read(words, old, value)[name] == read(words, new, value)[name] != read(words)[name]


@pytest.mark.parametrize("words", ALL)
def test_a_switch_has_both_spellings(words):
    for option in options(ALL[words]):
        if not option.is_bool_flag or not option.expose_value:
            continue
        (name,) = [each for each in option.opts if each.startswith("--")]
        for on in ([name], [name, "True"], [name, "true"], [f"{name}=True"], [f"{name}=1"]):
            assert read(words, *on)[option.name] is True, on
        for off in ([f"--no-{name[2:]}"], [name, "False"], [f"--{name[2:].replace('-', '_')}", "False"]):
            assert read(words, *off)[option.name] is False, off


def groups(command, words):
    if isinstance(command, click.Group):
        yield words, command
        for name, child in command.commands.items():
            yield from groups(child, [*words, name])


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_line_of_each_command_fits_80_columns(name):
    for words, _ in groups(program(name), []):
        text = CliRunner().invoke(program(name), [*words, "--help"], terminal_width=80).output
        listing = text.partition("Commands:")[2]
        assert listing
        assert "..." not in listing
        assert max(map(len, listing.splitlines())) <= 80


@pytest.mark.parametrize("words", ALL)
def test_what_was_meant_is_named(words):
    assert isinstance(ALL[words], parsing.Command)
    assert isinstance(program(words.split()[0]), base.Commands)
    if ALL[words].ignore_unknown_options or "ignore_unknown_options" in ALL[words].context_settings:
        return
    result = CliRunner().invoke(program(words.split()[0]), [*words.split()[1:], "--log-levle", "x"])
    assert result.exit_code == 2
    assert "Did you mean --log-level?" in result.stderr


@pytest.mark.parametrize(
    ("words", "arguments", "meant"),
    [
        ("qwen3-infer generate", ["--temprature", "1"], "--temperature"),
        ("qwen3-infer generate", ["--no-thinkin"], "--no-thinking"),
        ("qwen3-infer chat", ["--kernals", "auto"], "--kernels"),
        ("qwen3-infer score", ["--strid", "1"], "--stride"),
        ("qwen3-infer plan", ["--promt-tokens", "1"], "--prompt-tokens"),
        ("qwen3-train launch", ["--output_dirr", "x"], "output_dir"),
        ("qwen3-train launch", ["--model_parallel", "2"], "parallel_config.model_parallel"),
        ("qwen3-train plan", ["--device-memory", "58GB"], "--max-device-memory"),
        ("qwen3-train inspect-data", ["--limt", "2"], "--limit"),
        ("qwen3-train launch", ["--resume"], "resume_training"),
        ("qwen3-train plan", ["--tp", "2"], "parallel_config.model_parallel"),
        ("qwen3-infer generate", ["--prompt", "x"], "--input"),
        ("qwen3-infer serve", ["--model", "x"], "--pretrained-model-dir"),
        ("qwen3-infer chat", ["--temp", "1"], "--temperature"),
    ],
)
def test_an_argument_that_is_no_key_names_the_option_or_the_key_that_was_meant(words, arguments, meant):
    config = ["--config", "configs/qwen3/demo.yaml"] if words.startswith("qwen3-train") else []
    result = CliRunner().invoke(program(words.split()[0]), [*words.split()[1:], *config, *arguments])
    assert result.exit_code == 2
    assert f"(did you mean {meant}?)" in result.stderr


@pytest.mark.parametrize(
    ("words", "arguments", "message"),
    [
        ("qwen3-ckpt lora export", ["--aplha", "1"], "No such option --aplha. Did you mean --lora-alpha?"),
        ("qwen3-ckpt reshard", ["--tp", "2"], "No such option --tp. Did you mean --model-parallel?"),
        (
            "qwen3-data count",
            ["--tokenizer", "x"],
            "No such option --tokenizer. Did you mean --tokenizer-dir?",
        ),
        ("qwen3-infer serve", ["--max-bodybytes", "1"], "--max-bodybytes: unknown key max_bodybytes"),
        (
            "qwen3-train launch",
            ["--join=maybe"],
            "--join=maybe is neither true nor false; write --join or",
        ),
        ("qwen3-infer chat", ["tests"], "name the model's folder as --pretrained-model-dir tests"),
    ],
)
def test_an_argument_is_quoted_as_it_was_written_with_what_was_meant(words, arguments, message):
    result = CliRunner().invoke(program(words.split()[0]), [*words.split()[1:], *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0.6b", 0.6),
        ("qwen3_0_6b", 0.6),
        ("Qwen3-1.7B", 1.7),
        ("1_7b", 1.7),
        ("Qwen/Qwen3-32B", 32),
        ("7b", None),
    ],
)
def test_a_size_has_one_meaning_however_it_is_written(text, size):
    assert find_size(text) == (f"{size:g}B" if size else None)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2g", 2 << 30), ("1.5GiB", 3 << 29), ("512MB", 512 * 10**6), ("1e9", 10**9), ("2 gb", 2 * 10**9),
        ("100k", 100 << 10), ("0", None), ("-1", None), ("5GBi", None), ("1e9e", None), ("e9", None),
    ],
)  # fmt: skip
def test_an_amount_of_bytes_has_one_meaning(text, size_bytes):
    assert read_bytes(text) == size_bytes


def texts_of(package):
    """Yield every text of a package's modules with its file and line."""
    for path in sorted((Path(package.__file__).parent).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.name}:{node.lineno}", node.value


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_message_names_an_option_as_it_is_called_now(name):
    # qwen3-model has what all of them do.
    own = [command for words, command in ALL.items() if name in ("qwen3-model", words.split()[0])]
    shown = {each for command in own for option in options(command) for each in option.opts}
    earlier = {old for command in own for option in options(command) for old in getattr(option, "old", ())}
    earlier -= {"--key"}  # stands for any key of the YAML
    gone = re.compile(rf"(?<![\w-])({'|'.join(sorted(earlier - shown))})(?![\w-]|$)")
    package = importlib.import_module(name.replace("-", "_"))
    assert [where for where, text in texts_of(package) if gone.search(text) and text not in earlier] == []


def test_a_command_that_is_none_names_the_one_that_was_meant():
    result = CliRunner().invoke(program("qwen3-infer"), ["genrate"])
    assert result.exit_code == 2
    assert "generate" in result.stderr


def test_a_command_that_is_looked_for_without_its_group_is_named_with_it():
    result = CliRunner().invoke(program("qwen3-ckpt"), ["fuse", "base", "adapter", "out"])
    assert result.exit_code == 2
    assert "No such command 'fuse'. Did you mean 'lora fuse'?" in result.stderr


def test_launch_says_first_how_to_go_on_and_then_what_most_commands_give():
    text = ALL["qwen3-train launch"].help
    keys = ("resume_training", "output_dir", "pretrained_model_dir", "load_checkpoint", "device",
            "use_parallel", "do_eval", "seed")  # fmt: skip
    found = [text.index(f"      --{key} ") for key in keys]
    assert found == sorted(found)


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
