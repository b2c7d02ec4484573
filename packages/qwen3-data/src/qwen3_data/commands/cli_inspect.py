"""`qwen3-data inspect`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from qwen3_model.command.base import say
from qwen3_model.command.narrow import build
from qwen3_model.command.options import limit_option, start_option
from qwen3_model.command.parsing import Command, Option
from qwen3_model.command.plain_text import counted


def strip_ending(ctx: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """Accept `x.bin`, `x.idx` and `x.json` for the prefix `x`."""
    return value.with_suffix("") if value.suffix in (".bin", ".idx", ".json", ".mask") else value


@click.command("inspect", cls=Command)
@click.argument("prefix", type=click.Path(path_type=Path), callback=strip_ending)
@click.option(
    "--tokenizer-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Decode documents with this tokenizer.",
)
@limit_option("Sequences to show; 0 for none.", "docs", old=("--docs",), default=2, min=0)
@start_option
@click.option("--tokens", "shown", type=click.IntRange(min=1), default=64, show_default=True, help="Of each.")
@click.option(
    "--seq-length",
    type=click.IntRange(min=1),
    multiple=True,
    default=(4096,),
    show_default=True,
    help="Count training samples of this length; may be repeated.",
)
@click.option(
    "--output", "png", cls=Option, old=("--png",), type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png", help="Draw the histogram of lengths there.",
)  # fmt: skip
@click.option(
    "--sft", "is_sft", is_flag=True, help="PREFIX is instruction data; tokens with loss are shown green."
)
def inspect_command(
    prefix: Path,
    tokenizer_dir: Path | None,
    docs: int,
    start: int,
    *,
    is_sft: bool,
    **options: object,
) -> None:
    """Say what a token file holds.

    PREFIX is its path without .bin or .idx.

    \b
    Examples:
      qwen3-data inspect data/wiki_text_document --tokenizer-dir Qwen3-0.6B
      qwen3-data inspect --sft data/alpaca_sft --tokenizer-dir Qwen3-0.6B
    """
    if is_sft:
        _inspect_sft(prefix, tokenizer_dir, range(start, start + docs))
    else:
        build(partial(_inspect_tokens, prefix, tokenizer_dir, range(start, start + docs)), options)


def _inspect_tokens(
    prefix: Path,
    tokenizer_dir: Path | None,
    wanted: range,
    *,
    shown: int,
    seq_length: tuple[int, ...],
    png: Path | None,
) -> None:
    from qwen3_data.look.inspect import describe, inspect_tokens

    inspection = inspect_tokens(prefix)
    for line in describe(inspection):
        say(line)
    for length in seq_length:
        say(f"  samples    {inspection.num_samples(length):,} of seq_length {length}")
    if png is not None:
        from qwen3_data.look.histogram import draw_lengths

        draw_lengths(inspection, png)
        say(f"  histogram  {png}")
    tokens = inspection.tokens
    decode = _decoder(tokenizer_dir)
    for number in wanted:
        if number >= len(tokens.sequence_lengths):
            break
        length = int(tokens.sequence_lengths[number])
        ids = tokens.sequence(number, 0, min(shown, length)).tolist()
        say(f"sequence {number} ({counted(length, 'token')}): {' '.join(map(str, ids))}")
        if decode is not None:
            say(f"  {decode(ids)!r}")


def _inspect_sft(prefix: Path, tokenizer_dir: Path | None, wanted: range) -> None:
    from qwen3_data.look.sft_inspect import describe_sft, show_pack
    from qwen3_model.text.sft import open_sft
    from qwen3_model.text.tokenizer import Qwen3Tokenizer

    file = open_sft(prefix)
    tokenizer = None if tokenizer_dir is None else Qwen3Tokenizer.from_dir(tokenizer_dir)
    for line in describe_sft(file):
        say(line)
    for number in wanted:
        if number < len(file):
            click.echo("\n".join(show_pack(file, number, tokenizer)))


def _decoder(tokenizer_dir: Path | None) -> Callable[[list[int]], str] | None:
    if tokenizer_dir is None:
        return None
    from qwen3_model.text.tokenizer import Qwen3Tokenizer

    tokenizer = Qwen3Tokenizer.from_dir(tokenizer_dir)
    return lambda ids: tokenizer.decode(ids, skip_special=False)
