"""`qwen3-data wikitext`."""

from pathlib import Path
from typing import Literal

import click

from qwen3_model.command.base import force_option, say
from qwen3_model.command.parsing import Command
from qwen3_model.command.plain_text import counted


@click.command("wikitext", cls=Command)
@click.argument("source", metavar="INPUT", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", metavar="OUTPUT", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--unit",
    type=click.Choice(["article", "paragraph"]),
    default="article",
    show_default=True,
    help="What becomes one document.",
)
@click.option(
    "--headings",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    show_default=True,
    help="What becomes of lines such as = Title =.",
)
@click.option(
    "--unk",
    "unknown",
    type=click.Choice(["drop", "keep"]),
    default="drop",
    show_default=True,
    help="What becomes of sentences and headings with <unk>, WikiText's word for rare ones.",
)
@force_option()
def wikitext_command(
    source: Path,
    output: Path,
    unit: Literal["article", "paragraph"],
    headings: Literal["keep", "drop"],
    unknown: Literal["drop", "keep"],
    *,
    force: bool,
) -> None:
    """Turn a WikiText file into JSON lines of natural text.

    The marks of its tokenisation are undone: "5 @,@ 000 m ( 3 mi )" becomes "5,000 m (3 mi)".

    \b
    Example:
      qwen3-data wikitext wiki.train.tokens wiki.jsonl
    """
    from qwen3_data.input.wikitext import convert_wikitext
    from qwen3_model.command.files import refuse_existing

    refuse_existing(output, force=force, sources=[source])
    counts = convert_wikitext(source, output, unit=unit, keep_headings=headings == "keep", unknown=unknown)
    say(f"{output}: {counted(counts.num_records, 'record')} from {counted(counts.num_articles, 'article')}")
    if counts.num_dropped:
        say(f"{counts.num_dropped} sentences and headings with <unk> left out; --unk keep has them")
