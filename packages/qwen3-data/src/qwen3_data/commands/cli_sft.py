"""`qwen3-data sft`."""

import os
from pathlib import Path

import click

from qwen3_data.commands.cli_options import engine_option, max_record_option, on_error_option, workers_option
from qwen3_data.commands.cli_types import ManyValues, OutputPrefix
from qwen3_model.command.base import force_option, quiet_option, say
from qwen3_model.command.narrow import build
from qwen3_model.command.plain_text import counted


@click.command("sft", cls=ManyValues)
@click.option("--input", "inputs", multiple=True, required=True, help="As of preprocess; one or several.")
@click.option(
    "--output-prefix",
    required=True,
    type=OutputPrefix(),
    help="Files are named PREFIX_sft.bin, .idx, .mask and .json.",
)
@click.option(
    "--tokenizer-dir",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with tokenizer.json and the chat template.",
)
@click.option(
    "--seq-length", type=click.IntRange(min=16), default=4096, show_default=True, help="Tokens of a sequence."
)
@click.option(
    "--pack/--no-pack", default=True, show_default=True, help="Several conversations in one sequence."
)
@click.option(
    "--loss-on",
    type=click.Choice(["all", "last"]),
    default="all",
    show_default=True,
    help="Which turns of the assistant are learned.",
)
@click.option(
    "--empty-think",
    type=click.Choice(["train", "mask"]),
    default="train",
    show_default=True,
    help="train: the model learns to begin an answer without thought by an empty one.",
)
@click.option(
    "--thoughts",
    type=click.Choice(["keep", "split", "template"]),
    default="keep",
    show_default=True,
    help="Of answers before the last. keep: each with its thought; split: a sample per answer, as the model "
    "sees it; template: as the chat template renders them, and Qwen3's leaves them out.",
)
@click.option(
    "--too-long",
    type=click.Choice(["truncate", "drop"]),
    default="truncate",
    show_default=True,
    help="What becomes of a conversation beyond --seq-length.",
)
@workers_option
@engine_option
@on_error_option
@max_record_option
@click.option(
    "--rejects", type=click.Path(dir_okay=False, path_type=Path), help="List of the skipped records."
)
@force_option()
@quiet_option()
def sft_command(workers: int | None, **options: object) -> None:
    """Turn instruction data into tokens and a loss mask.

    The chat template renders each conversation; loss is on the assistant's words alone.

    Known records: alpaca (instruction, input, output, history, system), ShareGPT (conversations), OpenAI
    (messages, tools), seed tasks (instruction, instances).

    \b
    Example:
      qwen3-data sft --input alpaca.json --output-prefix data/alpaca --tokenizer-dir Qwen3-0.6B
    """
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    from qwen3_data.runs.sft import SftSettings, write_sft

    output, manifest, totals = write_sft(build(SftSettings, options))
    fill = manifest.num_tokens / (manifest.num_packs * manifest.seq_length)
    say(
        f"{counted(manifest.num_samples, 'conversation')} in {counted(manifest.num_packs, 'sequence')}, "
        f"{counted(manifest.num_tokens, 'token')}, {manifest.num_loss_tokens} with loss; sequences are "
        f"{fill:.1%} full"
    )
    if manifest.num_truncated:
        say(f"{counted(manifest.num_truncated, 'conversation')} cut to {manifest.seq_length} tokens")
    if manifest.num_dropped:
        say(
            f"{counted(manifest.num_dropped, 'conversation')} left out, too long for {manifest.seq_length}: "
            f"{', '.join(totals.fit.dropped)}"
        )
    if totals.num_without_thought:
        say(
            f"{totals.num_without_thought} answers are learned without the thought of their record, since "
            "the template takes it out; --thoughts keep or split has them"
        )
    if manifest.num_skipped_records:
        say(f"{manifest.num_skipped_records} bad records skipped")
    say(f"Wrote {output}.bin, .idx, .mask and .json")
