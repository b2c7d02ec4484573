"""What every command does alike: error sentences, exit codes, flag spelling, `--quiet`, `--log-level`."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

import click

from qwen3_model.command.narrow import build
from qwen3_model.command.parsing import Command
from qwen3_model.command.plain_text import as_message, one_line, without_controls
from qwen3_model.errors import Qwen3Error, UsageError

Decorator = Callable[[Callable[..., object]], Callable[..., object]]

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    # mindformers writes --pretrained_model_dir, we write --pretrained-model-dir; both work.
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


class Commands(click.Group):
    """Group that turns our errors and the system's into one sentence and exit code 1, without a traceback."""

    command_class = Command
    group_class = type

    def __init__(self, name: str | None = None, **attributes: object) -> None:
        build(super().__init__, {"name": name, "context_settings": CONTEXT, **attributes})

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        if not isinstance(cmd, click.Group):
            _complete_options(cmd)
        super().add_command(cmd, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command as click does; name the group of a command that is looked for without it."""
        for group in self.commands.values():
            if isinstance(group, click.Group) and args[0] in group.commands and args[0] not in self.commands:
                ctx.fail(f"No such command {args[0]!r}. Did you mean '{group.name} {args[0]}'?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        before = signal.signal(signal.SIGTERM, _exit_cleanly)
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(as_message(str(error))) from error
        except Qwen3Error as error:
            raise click.ClickException(as_message(str(error))) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise click.ClickException(as_message(_os_sentence(error))) from error
        except MemoryError as error:
            raise click.ClickException(
                "out of memory; use a smaller batch or sequence, or more memory"
            ) from error
        finally:
            # There is nothing left to tidy up, and a SystemExit while Python waits at its end for a library's
            # thread would print a traceback, or abort.
            signal.signal(signal.SIGTERM, before)


def _os_sentence(error: OSError) -> str:
    named = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device{named}; nothing half-written was kept; make room and run again"
    if error.errno == errno.EMFILE:
        import resource  # late: `--help` needs none

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"more than {limit} files are open at once{named}; raise the limit with `ulimit -n`"
    return f"{error.strerror or error}{named}"


def _exit_cleanly(number: int, frame: FrameType | None) -> None:
    # A SystemExit unwinds through the `finally` blocks that remove temporary files.
    raise SystemExit(128 + number)


LOG_LEVELS = {"debug": "0", "info": "1", "warning": "2", "error": "3"}
"""Python's names of them, and the GLOG_v that says the same to MindSpore."""


def _complete_options(command: click.Command) -> None:
    """Add the options that every command takes: `--log-level`, and `--quiet` where there is no progress."""
    names = {name for parameter in command.params for name in parameter.opts}
    if "--log-level" not in names:
        command.params.append(
            click.Option(
                ["--log-level"],
                type=click.Choice(list(LOG_LEVELS)),
                callback=_set_log_level,
                expose_value=False,
                help="What libraries report on stderr, MindSpore among them.",
            )
        )
    # So that a script may give it to any command; but `arguments` are another program's own words.
    if "--quiet" not in names and all(parameter.name != "arguments" for parameter in command.params):
        command.params.append(
            click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, help="Show no progress.")
        )


def _set_log_level(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    import logging  # late: `--help` needs none

    logging.basicConfig(
        level=value.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", force=True
    )
    os.environ["GLOG_v"] = LOG_LEVELS[value]  # noqa: SIM112 - its name


def say(text: str, *, err: bool = False) -> None:
    """Print a line in which names and texts of strangers move no cursor and begin no line."""
    click.echo(one_line(text), err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print several lines that may hold such names."""
    click.echo(without_controls(text), err=err)


def note(text: str) -> None:
    """Print a remark on stderr."""
    click.echo(as_message(text), err=True)


def quiet_option() -> Decorator:
    """Return the `--quiet` option of the commands that show progress; the others get one by themselves."""
    return click.option("-q", "--quiet", is_flag=True, help="Show no progress.")


def force_option(what: str = "an existing output") -> Decorator:
    """Return the `--force` option of the commands that write."""
    return click.option("--force", is_flag=True, help=f"Replace {what}, once the new one is whole.")
