"""The command line of `qwen3-infer serve`."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from qwen3_infer.cli_options import MODEL_OPTIONS, SAMPLING_OPTIONS, ArgumentKeeper, make_device, with_options
from qwen3_model.command.base import CONTEXT, quiet_option
from qwen3_model.command.narrow import as_int, as_text, build, optional
from qwen3_model.command.options import hide_option
from qwen3_model.command.types import BYTES, SECONDS
from qwen3_model.errors import UsageError
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.cli_options import launch_options

DEFAULT_TOKENS = 8192


@click.command(cls=ArgumentKeeper, context_settings=CONTEXT | {"ignore_unknown_options": True})
@with_options(MODEL_OPTIONS)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any.")
@click.option(
    "--api-key", envvar="QWEN3_INFER_API_KEY", metavar="KEY",
    help="What clients must send as a bearer token; better in the variable QWEN3_INFER_API_KEY, which no "
    "list of processes shows.",
)  # fmt: skip
@click.option(
    "--api-key-file", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="Holds that key."
)
@click.option("--insecure", is_flag=True, help="Let other machines in without a key.")
@click.option("--model-name", metavar="NAME", help="For clients.  [default: the folder's name]")
@click.option(
    "--max-requests", type=click.IntRange(1, 256), default=8, show_default=True,
    help="Completions that are computed together.",
)  # fmt: skip
@click.option(
    "--max-tokens-in-cache", type=click.IntRange(64),
    help=f"Room for what runs together; a request waits until there is enough.  [default: {DEFAULT_TOKENS}]",
)  # fmt: skip
@click.option(
    "--max-queue", type=click.IntRange(0), default=256, show_default=True,
    help="Completions that wait for room; more get 429, to try again.",
)  # fmt: skip
@click.option(
    "--queue-timeout",
    type=SECONDS,
    metavar="SECONDS",
    default=60,
    show_default=True,
    help="Seconds to wait for room.",
)
@click.option(
    "--request-timeout",
    type=SECONDS,
    metavar="SECONDS",
    default=600,
    show_default=True,
    help="Seconds for an answer.",
)
@click.option(
    "--send-timeout", type=SECONDS, metavar="SECONDS", default=60, show_default=True,
    help="Seconds for a client to send its request or to take a piece of the answer.",
)  # fmt: skip
@click.option(
    "--drain-timeout", type=SECONDS, metavar="SECONDS", default=60, show_default=True,
    help="Seconds for what runs when SIGTERM or Ctrl-C comes.",
)  # fmt: skip
@click.option(
    "--max-connections", type=click.IntRange(2), default=1000, show_default=True,
    help="Open connections, half of them of one address; fewer where ulimit -n is low.",
)  # fmt: skip
@click.option("--max-body-bytes", type=BYTES, default="4MiB", show_default=True, help="Largest request.")
@hide_option("--seed")
@with_options(SAMPLING_OPTIONS)
@click.option("--thinking/--no-thinking", default=None, help="Think before answering, the default.")
@quiet_option()
@hide_option("--join")
@launch_options
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def serve(
    context: click.Context,
    /,
    config_path: Path | None,
    overrides: tuple[str, ...],
    api_key: str | None,
    api_key_file: Path | None,
    quiet: bool,
    make_launch: Callable[[Path], LaunchSettings],
    **options: object,
) -> None:
    """Answer OpenAI's requests over HTTP; shows a chat page.

    Answered are completions and chat completions. The sampling flags are what a request gets that does
    not say otherwise.

    \b
    Example:
      qwen3-infer serve --pretrained-model-dir Qwen3-0.6B
      curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d \\
        '{"model": "Qwen3-0.6B", "messages": [{"role": "user", "content": "Hello"}], "stream": true}'
      qwen3-infer serve --worker-num 2 --pretrained-model-dir Qwen3-32B
    """
    from qwen3_infer.cli_launch import read_launch, read_worker_num, runs_for_another
    from qwen3_infer.serve.run import ServeSettings, run_serve
    from qwen3_infer.settings.settings import read_settings
    from qwen3_infer.text.utf8 import decode_utf8

    if options.pop("seed") is not None:
        raise UsageError("--seed is of generate and chat; a request to the server has a seed of its own")
    if api_key_file is not None:
        api_key = decode_utf8(api_key_file.read_bytes(), str(api_key_file)).strip()
    if api_key == "":
        raise UsageError("the API key is empty; leave it out to have none")
    if api_key is not None and not api_key.isprintable():
        raise UsageError("the API key is not one line of text; no client could send it")
    kernels, threads = as_text(options.pop("kernels")), optional(as_int, options.pop("threads"))
    names = ("host", "port", "insecure", "model_name", "max_requests", "max_queue",
             "max_connections", "max_body_bytes")  # fmt: skip
    times = ("queue_timeout", "request_timeout", "send_timeout", "drain_timeout")
    own = {name: options.pop(name) for name in names} | {f"{name}_s": options.pop(name) for name in times}
    worker_num = read_worker_num(make_launch)
    settings = read_settings(config_path, options, overrides, worker_num=worker_num, environment=os.environ)
    own |= {"api_key": api_key, "max_tokens_in_cache": settings.max_tokens_in_cache or DEFAULT_TOKENS}
    serving = build(ServeSettings, own)
    device = make_device(settings, kernels, threads)
    launch = read_launch(context, make_launch, settings.output_dir)
    if runs_for_another(context, settings, device, launch, quiet=quiet):
        return
    note = partial(click.echo, err=True)
    run_serve(settings, serving, device, quiet=quiet, note=note, launch=launch)
