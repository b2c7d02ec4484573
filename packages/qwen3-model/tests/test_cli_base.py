import errno
import resource
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from qwen3_model.command.base import Commands
from qwen3_model.errors import ConfigError, UsageError


def make_command(raises):
    @click.group(cls=Commands)
    def main():
        pass

    @main.command()
    @click.option("--some-dir")
    def work(some_dir):
        if raises:
            raise raises
        click.echo(some_dir)

    return main


@pytest.mark.parametrize(
    ("error", "exit_code", "sentence"),
    [
        (ConfigError("a=1 cannot be; use 2"), 1, "Error: a=1 cannot be; use 2\n"),
        (ConfigError("key \x1b[31mred\x07 is\nno key"), 1, "Error: key \\x1b[31mred\\x07 is\n  no key\n"),
        (UsageError("give one of both"), 2, "Error: give one of both\n"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
            1,
            "No such file or directory (x)",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "y"), 1, "no space left on the device (y)"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_an_error_is_one_sentence_on_stderr_with_its_exit_code(error, exit_code, sentence):
    result = CliRunner().invoke(make_command(error), ["work"])
    assert result.exit_code == exit_code
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_our_own_bugs_keep_their_traceback():
    result = CliRunner().invoke(make_command(AssertionError("bug")), ["work"])
    assert isinstance(result.exception, AssertionError)


@pytest.mark.parametrize("flag", ["--some-dir", "--some_dir"])
def test_hyphens_and_underscores_are_the_same(flag):
    result = CliRunner().invoke(make_command(None), ["work", flag, "here"])
    assert result.exit_code == 0
    assert result.stdout == "here\n"


SLEEPER = """
import sys, time
from pathlib import Path
import click
from qwen3_model.command.base import Commands
from qwen3_model.command.files import output_directory

@click.group(cls=Commands)
def main(): pass

@main.command()
@click.argument("out", type=click.Path(path_type=Path))
def work(out):
    with output_directory(out):
        print("started", flush=True)
        time.sleep(60)

main()
"""


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 1)]
)
def test_a_stopped_command_removes_its_temporary_files(tmp_path, number, exit_code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, "work", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_finished_command_leaves_signals_as_they_were():
    """Python waits for threads after it; an exception there prints a traceback, or aborts."""
    before = signal.getsignal(signal.SIGTERM)
    for error in (None, ConfigError("no")):
        CliRunner().invoke(make_command(error), ["work"])
        assert signal.getsignal(signal.SIGTERM) is before


def test_too_many_open_files_are_a_sentence_with_the_limit_and_the_remedy():
    error = OSError(errno.EMFILE, "Too many open files", "a.safetensors")
    result = CliRunner().invoke(make_command(error), ["work"])
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert result.exit_code == 1
    assert f"more than {limit} files are open at once (a.safetensors); raise the limit" in result.output
