"""`qwen3-data merge`, `split` and `verify`."""

import re
from pathlib import Path

import click

from qwen3_data.commands.cli_types import OutputPrefix
from qwen3_model.command.base import force_option, quiet_option, say
from qwen3_model.command.parsing import Command

DECIMAL = re.compile(r"[-+]?(nan|inf|[0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
MAX_PARTS = 100_000
"""Numbers of five digits keep the parts in order by name."""


@click.command("merge", cls=Command)
@click.argument("more_inputs", nargs=-1, type=click.Path(path_type=Path), metavar="[INPUT]...")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Token file without ending, or a folder of them (taken by name).",
)
@click.option(
    "--output-prefix",
    required=True,
    type=OutputPrefix(),
    help="Path of the result without ending.",
)
@click.option("--allow-incomplete", is_flag=True, help="Shares of a run (--num-shards) may be missing.")
@force_option()
def merge_command(
    inputs: tuple[Path, ...],
    more_inputs: tuple[Path, ...],
    output_prefix: Path,
    *,
    allow_incomplete: bool,
    force: bool,
) -> None:
    """Join token files, in the order given.

    Of the shares of one run it makes the bytes of that run. A set of shares that is incomplete, repeated,
    out of order or of several runs is refused.

    \b
    Example:
      qwen3-data merge data/big_*_text_document.idx --output-prefix data/big_text_document
    """
    from qwen3_data.look.inspect import describe, inspect_tokens
    from qwen3_data.runs.combine import find_token_files, merge_tokens
    from qwen3_model.errors import UsageError

    prefixes = find_token_files([*inputs, *more_inputs])
    if not prefixes:
        raise UsageError("name the token files to merge, or a folder of them")
    merge_tokens(prefixes, output_prefix, force=force, allow_incomplete=allow_incomplete)
    for line in describe(inspect_tokens(output_prefix))[:4]:
        say(line)


@click.command("split", cls=Command)
@click.argument("prefix", type=click.Path(path_type=Path))
@click.option(
    "--parts",
    required=True,
    help="A number of equal parts, or their weights: 95,5. Tokens decide, documents stay whole.",
)
@click.option("--output-prefix", type=OutputPrefix(), help="PREFIX_00000, ... by default.")
@force_option()
def split_command(prefix: Path, parts: str, output_prefix: Path | None, *, force: bool) -> None:
    """Cut a token file into consecutive parts.

    Merging them gives it back.

    \b
    Example:
      qwen3-data split data/wiki_text_document --parts 95,5
    """
    from qwen3_data.runs.combine import find_token_files, split_tokens

    (prefix,) = find_token_files([prefix])
    for path in split_tokens(prefix, output_prefix or prefix, parse_parts(parts), force=force):
        say(f"Wrote {path}.bin and .idx")


def parse_parts(text: str) -> list[float]:
    """Return the weights that `3` or `95,5` mean.

    Raises:
        UsageError: They are no positive numbers.
    """
    from qwen3_model.errors import UsageError

    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not DECIMAL.fullmatch(part)]:
        raise UsageError(
            f"--parts {text}: {wrong[0]!r} is neither a number of parts nor a weight; write for example 3 "
            "or 95,5"
        )
    weights = [float(part) for part in parts]
    if len(weights) == 1 and weights[0].is_integer() and weights[0] <= MAX_PARTS:
        weights = [1.0] * int(weights[0])
    if len(weights) < 2 or not all(0 < weight < float("inf") for weight in weights):
        raise UsageError(
            f"--parts {text} must be two parts or more, {MAX_PARTS} at most, or positive weights like 95,5"
        )
    return weights


@click.command("verify", cls=Command)
@click.argument("prefixes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--tokenizer-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="It must be the one that the manifest names.",
)
@click.option("--vocab-size", type=click.IntRange(min=1), help="Of the model; ids must be below.")
@click.option("--sft", "is_sft", is_flag=True, help="PREFIXES are instruction data (qwen3-data sft).")
@quiet_option()
def verify_command(
    prefixes: tuple[Path, ...],
    tokenizer_dir: Path | None,
    vocab_size: int | None,
    *,
    is_sft: bool,
    quiet: bool,
) -> None:
    """Check token files; exit 1 with what is wrong.

    object are structure, ids, manifest and end-of-document ids, or the masks of instruction data.

    \b
    Examples:
      qwen3-data verify data/wiki_text_document --tokenizer-dir Qwen3-0.6B
      qwen3-data verify --sft data/alpaca_sft --tokenizer-dir Qwen3-0.6B
    """
    from qwen3_data.look.sft_verify import verify_sft
    from qwen3_data.look.verify import verify_tokens
    from qwen3_data.runs.combine import find_token_files
    from qwen3_model.errors import FormatError

    problems: list[str] = []
    tokenizer = None
    if is_sft and tokenizer_dir is not None:
        from qwen3_model.text.tokenizer import Qwen3Tokenizer

        tokenizer = Qwen3Tokenizer.from_dir(tokenizer_dir)
    for prefix in find_token_files(prefixes):
        if is_sft:
            found = verify_sft(prefix, tokenizer, vocab_size)
        else:
            found, notes = verify_tokens(prefix, tokenizer_dir, vocab_size, quiet=quiet)
            for note in notes:
                say(f"note: {note}", err=True)
        if not found:
            say(f"{prefix}: whole")
        problems += found
    if problems:
        raise FormatError("\n".join(problems))
