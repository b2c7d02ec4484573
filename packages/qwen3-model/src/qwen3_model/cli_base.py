"""What every command does alike: error sentences, exit codes, flag spelling, `--version`."""

import errno
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import click

from qwen3_model.errors import Qwen3Error, UsageError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    # mindformers writes --pretrained_model_dir, we write --pretrained-model-dir; both work.
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


class Commands(click.Group):
    """Group that turns our errors and the system's into one sentence and exit code 1, without a traceback."""

    def __init__(self, *args: object, **attributes: object) -> None:
        attributes.setdefault("context_settings", CONTEXT)
        super().__init__(*args, **attributes)  # type: ignore[arg-type]

    def invoke(self, ctx: click.Context) -> object:
        signal.signal(signal.SIGTERM, _exit_cleanly)
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(str(error)) from error
        except Qwen3Error as error:
            raise click.ClickException(str(error)) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise click.ClickException(_os_sentence(error)) from error
        except MemoryError as error:
            raise click.ClickException(
                "out of memory; use a smaller batch or sequence, or more memory"
            ) from error


def _os_sentence(error: OSError) -> str:
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device{place}; nothing half-written was kept; make room and run again"
    return f"{error.strerror or error}{place}"


def _exit_cleanly(number: int, frame: FrameType | None) -> None:
    # A SystemExit unwinds through the `finally` blocks that remove temporary files.
    raise SystemExit(128 + number)


def quiet_option() -> Decorator:
    """Return the `--quiet` option that every long command has."""
    return click.option("-q", "--quiet", is_flag=True, help="Show no progress.")


def force_option(what: str = "an existing output") -> Decorator:
    """Return the `--force` option of the commands that write."""
    return click.option("--force", is_flag=True, help=f"Replace {what}, once the new one is whole.")
