"""`qwen3-data preprocess`."""

import os
from pathlib import Path

import click

from qwen3_data.commands.cli_options import (
    engine_option,
    limit_docs_option,
    max_record_option,
    on_error_option,
    workers_option,
)
from qwen3_data.commands.cli_types import ManyValues, OutputPrefix, TokenizerType
from qwen3_model.command.base import force_option, quiet_option, say
from qwen3_model.command.narrow import build
from qwen3_model.command.parsing import Option
from qwen3_model.command.types import BYTES
from qwen3_model.errors import UsageError

NOT_NEEDED = {
    "lang": "sentences of every language are split alike",
    "partitions": "one run uses all cores and keeps the order; --num-shards divides it among machines",
    "log_interval": "progress is shown all the time",
    "keep_sequential_samples": "the order is always that of the input",
    "trust_remote_code": "no code of a tokenizer's folder is ever run",
    "vocab_file": "tokenizer.json of --tokenizer-dir holds the vocabulary",
    "merges_file": "tokenizer.json of --tokenizer-dir holds the merges",
    "tokenizer_file": "tokenizer.json of --tokenizer-dir is read",
}
"""Flags of mindformers' script that say what is the case anyway."""


@click.command("preprocess", cls=ManyValues)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    required=True,
    help="File, folder, glob pattern or - for stdin; one or several. Known: .jsonl .json .parquet .txt, also "
    "compressed (.gz .zst .bz2 .xz).",
)
@click.option(
    "--output-prefix",
    required=True,
    type=OutputPrefix(),
    help="Files are named PREFIX_KEY_document.bin, .idx and .json.",
)
@click.option(
    "--tokenizer-type",
    type=TokenizerType(),
    default=TokenizerType.known,
    show_default=True,
    help="The only one; the name is Megatron-LM's and mindformers'.",
)
@click.option(
    "--tokenizer-dir",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that holds tokenizer.json.",
)
@click.option(
    "--json-keys",
    multiple=True,
    default=("text",),
    show_default=True,
    help="Key to encode; one or several, each with files of its own. A dot leads into an object: meta.text.",
)
@click.option(
    "--append-eod/--no-append-eod",
    default=True,
    show_default=True,
    help="End each document with the EOD token.",
)
@click.option("--eod-token", default="<|endoftext|>", show_default=True, help="Token that ends a document.")
@workers_option
@engine_option
@click.option(
    "--id-dtype",
    "dtype",
    cls=Option,
    old=("--dtype",),
    type=click.Choice(["auto", "int32", "uint16"], case_sensitive=False),
    default="auto",
    show_default=True,
    help="Of the ids; auto: uint16 where the vocabulary is small enough, as Megatron chooses.",
)
@click.option("--allow-special", is_flag=True, help="<|im_end|> and the like in the text mean the tokens.")
@click.option(
    "--split-sentences", is_flag=True, help="One sequence per sentence; files are named PREFIX_KEY_sentence."
)
@click.option("--keep-newlines", is_flag=True, help="White space between sentences stays with the first.")
@on_error_option
@max_record_option
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON lines of the skipped records, with file, line and reason.",
)
@limit_docs_option
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option(
    "--shard-size",
    "shard_bytes",
    type=BYTES,
    default="256MiB",
    show_default=True,
    help="Output between two points that --resume can go on from, one for each 4 MB of input at most.",
)
@click.option(
    "--shard-index", type=int, default=0, show_default=True, help="Which part this machine takes, from 0."
)
@click.option(
    "--num-shards", type=click.IntRange(min=1), default=1, show_default=True, help="How many parts there are."
)
@click.option("--lang", type=click.Choice(["english", "chinese"]), hidden=True)
@click.option("--partitions", type=click.IntRange(min=1), hidden=True)
@click.option("--log-interval", type=click.IntRange(min=1), hidden=True)
@click.option("--keep-sequential-samples", is_flag=True, hidden=True)
@click.option("--trust-remote-code", is_flag=True, hidden=True)
@click.option("--vocab-file", hidden=True)
@click.option("--merges-file", hidden=True)
@click.option("--tokenizer-file", hidden=True)
@force_option()
@quiet_option()
def preprocess_command(
    json_keys: tuple[str, ...],
    workers: int | None,
    tokenizer_type: str,
    **options: object,
) -> None:
    """Encode text as Megatron token files.

    They are PREFIX_KEY_document.bin and .idx; a manifest (.json) says how they were made.

    \b
    Examples:
      qwen3-data preprocess --input wiki.jsonl --output-prefix data/wiki --tokenizer-dir Qwen3-0.6B
      qwen3-data preprocess --input 'crawl/*.jsonl.gz' --output-prefix data/crawl \\
          --tokenizer-dir Qwen3-0.6B --on-error skip --rejects bad.jsonl --resume
      srun qwen3-data preprocess --input big.jsonl --output-prefix data/big --tokenizer-dir Qwen3-0.6B \\
          --shard-index $SLURM_ARRAY_TASK_ID --num-shards 16
    """
    for name in NOT_NEEDED:
        if options.pop(name):
            say(f"note: --{name.replace('_', '-')} is not needed here: {NOT_NEEDED[name]}", err=True)
    if workers is not None:
        # Both encoders take the size of their thread pool from here, once.
        os.environ["RAYON_NUM_THREADS"] = str(workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from qwen3_data.runs.preprocess import preprocess
    from qwen3_data.runs.preprocess_settings import Settings

    keys = tuple(dict.fromkeys(key for entry in json_keys for key in entry.split(",") if key))
    if not keys:
        raise UsageError("--json-keys names no key")
    settings = build(Settings, {"json_keys": keys, **options})
    result = preprocess(settings)
    from qwen3_data.runs.report import preprocess_report  # now, since it needs what loads beside the encoder

    for line in preprocess_report(result):
        say(line)
