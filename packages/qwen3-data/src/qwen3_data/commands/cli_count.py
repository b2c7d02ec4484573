"""`qwen3-data count` and `detokenize`."""

import os
from pathlib import Path

import click

from qwen3_data.commands.cli_inspect import strip_ending
from qwen3_data.commands.cli_options import (
    engine_option,
    limit_docs_option,
    max_record_option,
    on_error_option,
    workers_option,
)
from qwen3_data.commands.cli_types import ManyValues
from qwen3_model.command.base import force_option, quiet_option, say
from qwen3_model.command.narrow import build
from qwen3_model.command.parsing import Command, Option
from qwen3_model.command.plain_text import counted

tokenizer_option = click.option(
    "--tokenizer-dir",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that holds tokenizer.json.",
)


@click.command("count", cls=ManyValues)
@click.option("--input", "inputs", multiple=True, required=True, help="As of preprocess; one or several.")
@tokenizer_option
@click.option("--json-keys", multiple=True, default=("text",), show_default=True, help="As of preprocess.")
@workers_option
@engine_option
@click.option("--allow-special", is_flag=True, help="<|im_end|> and the like in the text mean the tokens.")
@on_error_option
@max_record_option
@limit_docs_option
@quiet_option()
def count_command(
    inputs: tuple[str, ...],
    tokenizer_dir: Path,
    json_keys: tuple[str, ...],
    workers: int | None,
    engine: str,
    *,
    allow_special: bool,
    **options: object,
) -> None:
    """Count documents and tokens of text, without writing anything.

    \b
    Example:
      qwen3-data count --input 'crawl/*.jsonl.gz' --tokenizer-dir Qwen3-0.6B
    """
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from qwen3_data.encode.engines import choose_engine, load_encoders
    from qwen3_data.encode.tokenizer_facts import TokenizerFile
    from qwen3_data.input.sources import find_sources, input_size
    from qwen3_model.errors import UsageError

    keys = tuple(dict.fromkeys(key for entry in json_keys for key in entry.split(",") if key))
    if not keys:
        raise UsageError("--json-keys names no key")
    sources = find_sources(inputs)
    file = TokenizerFile(tokenizer_dir)
    chosen = choose_engine(engine, input_size(sources))
    with load_encoders(chosen, file, allow_special=allow_special) as encoders:
        from qwen3_data.look.count import CountSettings, count_tokens

        settings = build(CountSettings, {"json_keys": keys, **options})
        count = count_tokens(settings, sources, file.facts(None), encoders)
    for key, found in count.keys.items():
        num_empty = found.num_documents - found.num_with_tokens
        with_ends = found.num_tokens + found.num_with_tokens
        say(
            f"{key}: {counted(found.num_documents, 'document', ',')} ({num_empty:,} empty), "
            f"{counted(found.num_chars, 'character', ',')}, {counted(found.num_tokens, 'token', ',')}; "
            f"{with_ends:,} with end-of-document ids"
        )
    if count.num_skipped:
        say(f"{counted(count.num_skipped, 'bad record')} skipped")


@click.command("detokenize", cls=Command)
@click.argument("prefix", type=click.Path(path_type=Path), callback=strip_ending)
@click.argument("output", metavar="OUTPUT", type=click.Path(dir_okay=False, path_type=Path))
@tokenizer_option
@click.option(
    "--json-keys", "key", cls=Option, old=("--key",), metavar="KEY", default="text", show_default=True,
    help="Key of the text in each object.",
)  # fmt: skip
@click.option("--eod-token", help="Left out at the end of a document.  [default: what the manifest says]")
@force_option()
@quiet_option()
def detokenize_command(
    prefix: Path,
    output: Path,
    tokenizer_dir: Path,
    key: str,
    eod_token: str | None,
    *,
    force: bool,
    quiet: bool,
) -> None:
    """Turn a token file back into JSON lines.

    Special tokens come as their text.

    \b
    Example:
      qwen3-data detokenize data/wiki_text_document wiki.jsonl --tokenizer-dir Qwen3-0.6B
    """
    from qwen3_data.look.detokenize import detokenize
    from qwen3_model.command.files import refuse_existing
    from qwen3_model.text.tokenizer import Qwen3Tokenizer

    refuse_existing(output, force=force)
    tokenizer = Qwen3Tokenizer.from_dir(tokenizer_dir)
    eod_id = None if eod_token is None else tokenizer.token_id(eod_token)
    restored = detokenize(prefix, output, tokenizer, key=key, eod_id=eod_id, quiet=quiet)
    say(f"{output}: {counted(restored.num_documents, 'document')}")
    if restored.num_damaged:
        say(f"{restored.num_damaged} documents hold U+FFFD, mostly for bytes that are no UTF-8")
