"""The command `qwen3-data`."""

import copy

import click

from qwen3_data import __version__
from qwen3_data.commands.cli_count import count_command, detokenize_command
from qwen3_data.commands.cli_files import merge_command, split_command, verify_command
from qwen3_data.commands.cli_inspect import inspect_command
from qwen3_data.commands.cli_preprocess import preprocess_command
from qwen3_data.commands.cli_sft import sft_command
from qwen3_data.commands.cli_text import wikitext_command
from qwen3_model.command.base import Commands


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="qwen3-data")
def main() -> None:
    """Turn raw text into exact Megatron token files for Qwen3."""


for command in (
    wikitext_command,
    preprocess_command,
    inspect_command,
    merge_command,
    split_command,
    verify_command,
    count_command,
    detokenize_command,
    sft_command,
):
    main.add_command(command)
alpaca_command = copy.copy(sft_command)  # mindformers' name of its script
alpaca_command.hidden = True
main.add_command(alpaca_command, name="alpaca")
