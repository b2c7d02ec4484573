"""Options that commands of several packages share: what one name means, it means everywhere."""

from collections.abc import Callable

import click

from qwen3_model.command.parsing import Option
from qwen3_model.command.types import DEVICE, DEVICE_MEMORY

Decorator = Callable[[Callable[..., object]], Callable[..., object]]

MAX_THREADS = 1024
"""Libraries would try to start any number of threads."""
COUNT_FROM_0 = click.IntRange(min=0)

start_option = click.option(
    "--start", cls=Option, old=("--first",), type=COUNT_FROM_0, default=0, show_default=True, metavar="N",
    help="First one to show, from 0.",
)  # fmt: skip
device_memory_option = click.option(
    "--max-device-memory", type=DEVICE_MEMORY, metavar="SIZE",
    help="Memory of a device, like 58GB, of 2^30 bytes each as in MindSpore.  [default: the YAML's]",
)  # fmt: skip


def limit_option(
    text: str,
    name: str = "limit",
    *,
    old: tuple[str, ...] = (),
    default: int | None = None,
    min: int = 1,
) -> Decorator:
    """Return the `--limit` option: how many of what the command reads; `text` is its help."""
    return click.option(
        "--limit", name, cls=Option, old=old, type=click.IntRange(min=min), default=default,
        show_default=default is not None, metavar="N", help=text,
    )  # fmt: skip


def threads_option(name: str = "threads", *, old: tuple[str, ...] = ()) -> Decorator:
    """Return the `--threads` option of the commands that work with several threads of one process."""
    return click.option(
        "--threads", name, cls=Option, old=old, type=click.IntRange(1, MAX_THREADS), metavar="N",
        help="Threads, at most.  [default: by the number of cores]",
    )  # fmt: skip


def device_option(name: str = "device_target", *, default: str | None = None) -> Decorator:
    """Return the `--device` option; mindformers' `--device_target CPU|Ascend` says the same."""
    return click.option(
        "--device", name, cls=Option, old=("--device-target",), type=DEVICE, default=default,
        help="Device; auto is Ascend where its driver is.  [default: auto, or what the YAML says]",
    )  # fmt: skip


def hide_option(name: str) -> Decorator:
    """Return a decorator that hides a shared option which this command takes only to refuse it."""

    def hide(function: Callable[..., object]) -> Callable[..., object]:
        options: list[click.Option] = getattr(function, "__click_params__", [])
        for option in options:
            if name in option.opts:
                option.hidden = True
        return function

    return hide
