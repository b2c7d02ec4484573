"""Options that several commands share."""

import click

from qwen3_data.commands.cli_types import ByteSize

MAX_WORKERS = 1024
"""The encoders would try to start any number of threads."""

workers_option = click.option(
    "--workers", type=click.IntRange(min=1, max=MAX_WORKERS), help="Encoding threads.  [default: all cores]"
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "fastokens", "tokenizers"]),
    default="auto",
    show_default=True,
    help="auto: fastokens where installed, a sample of it checked against tokenizers.",
)
on_error_option = click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="At a bad record: stop with its file and line, or leave it out and count it.",
)
max_record_option = click.option(
    "--max-record-bytes",
    type=ByteSize(),
    default=1 << 30,
    help="A longer record stops the run before it takes the memory, also in compressed files.  [default: 1G]",
)
