"""The command `qwen3-ckpt average`."""

from pathlib import Path

import click

from qwen3_ckpt.commands.cli_options import A_PATH, FiniteRange, HfOptions, echo_notes, hf_output_options
from qwen3_model.command.base import say
from qwen3_model.command.parsing import Command


@click.command(cls=Command)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=A_PATH)
@click.option(
    "--weight", "weights", multiple=True, type=FiniteRange(),
    help="Weight of a source, once for each in their order; equal by default.",
)  # fmt: skip
@hf_output_options
def average(sources: tuple[Path, ...], output: Path, weights: tuple[float, ...], hf: HfOptions) -> None:
    """Write the mean of models as a Hugging Face folder.

    SOURCES are models of one shape; OUTPUT is the folder. A source is a checkpoint of any form, such as a
    file of rank 0, which stands for its step.

    \b
    Examples:
      qwen3-ckpt average run1 run2 run3 mean
      qwen3-ckpt average hf_model another_model mean --weight 0.7 --weight 0.3
    """
    from qwen3_ckpt.operations.average import AverageRequest
    from qwen3_ckpt.operations.average import average as run

    request = AverageRequest(sources, weights, hf.dtype, hf.hf_dir, hf.layout)
    shares, notes = run(request, output, force=hf.force, quiet=hf.quiet, shard_bytes=hf.shard_bytes)
    echo_notes(notes)
    say(f"averaged {len(shares)} sources, {', '.join(f'{share:.4g}' for share in shares)}: {output}")
