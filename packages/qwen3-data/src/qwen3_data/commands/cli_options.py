"""Options that several commands share."""

import click

from qwen3_model.command.options import limit_option, threads_option
from qwen3_model.command.types import BYTES

# mindformers' script calls the threads workers.
workers_option = threads_option("workers", old=("--workers",))
limit_docs_option = limit_option("Stop after so many documents.", "max_docs", old=("--max-docs",))
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
    type=BYTES,
    default="1GiB",
    show_default=True,
    help="A longer record stops the run before it takes the memory, also in compressed files.",
)
