"""`qwen3-data inspect`."""

from pathlib import Path

import click


def strip_ending(ctx: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """Accept `x.bin`, `x.idx` and `x.json` for the prefix `x`."""
    return value.with_suffix("") if value.suffix in (".bin", ".idx", ".json") else value


@click.command("inspect")
@click.argument("prefix", type=click.Path(path_type=Path), callback=strip_ending)
@click.option(
    "--tokenizer-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Decode documents with this tokenizer.",
)
@click.option("--docs", type=click.IntRange(min=0), default=2, show_default=True, help="Documents to show.")
@click.option("--start", type=click.IntRange(min=0), default=0, show_default=True, help="First one to show.")
@click.option("--tokens", "shown", type=click.IntRange(min=1), default=64, show_default=True, help="Of each.")
@click.option("--seq-length", type=click.IntRange(min=1), multiple=True, default=(4096,), show_default=True)
def inspect_command(
    prefix: Path, tokenizer_dir: Path | None, docs: int, start: int, shown: int, seq_length: tuple[int, ...]
) -> None:
    """Say what a token file holds; PREFIX is its path without .bin or .idx.

    \b
    Example:
      qwen3-data inspect data/wiki_text_document --tokenizer-dir Qwen3-0.6B
    """
    from qwen3_data.inspect import describe, inspect_tokens

    inspection = inspect_tokens(prefix)
    for line in describe(inspection):
        click.echo(line)
    for length in seq_length:
        click.echo(f"  samples    {inspection.num_samples(length):,} of seq_length {length}")
    tokens = inspection.tokens
    decode = None
    if tokenizer_dir is not None:
        from qwen3_model.tokenizer import Qwen3Tokenizer

        decode = Qwen3Tokenizer.from_dir(tokenizer_dir).decode
    for number in range(start, min(start + docs, len(tokens.sequence_lengths))):
        length = int(tokens.sequence_lengths[number])
        ids = tokens.sequence(number, 0, min(shown, length)).tolist()
        click.echo(f"sequence {number} ({length} tokens): {' '.join(map(str, ids))}")
        if decode is not None:
            click.echo(f"  {decode(ids, skip_special=False)!r}")
