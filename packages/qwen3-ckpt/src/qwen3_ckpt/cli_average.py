"""The command `qwen3-ckpt average`."""

from pathlib import Path

import click

from qwen3_ckpt.cli_options import (
    A_PATH,
    DTYPES,
    FiniteRange,
    dtype_option,
    hf_dir_option,
    shard_option,
    source_layout_options,
)
from qwen3_model.cli_base import force_option, quiet_option, say


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=A_PATH)
@click.option(
    "--weight", "weights", multiple=True, type=FiniteRange(),
    help="Weight of a source, once for each in their order; equal by default.",
)  # fmt: skip
@dtype_option
@source_layout_options
@hf_dir_option
@shard_option
@force_option()
@quiet_option()
def average(  # noqa: PLR0913 - one parameter a flag
    sources: tuple[Path, ...],
    output: Path,
    weights: tuple[float, ...],
    dtype: str | None,
    source_qkv: str,
    source_mlp: str,
    hf_dir: Path | None,
    shard_bytes: int,
    force: bool,
    quiet: bool,
) -> None:
    """Write the mean of the weights in SOURCES, models of one shape, as the Hugging Face folder OUTPUT.

    A source is a checkpoint of any form, such as a file of rank 0, which stands for its step.

    \b
    Examples:
      qwen3-ckpt average run1 run2 run3 mean
      qwen3-ckpt average hf_model another_model mean --weight 0.7 --weight 0.3
    """
    from qwen3_ckpt.average import AverageRequest
    from qwen3_ckpt.average import average as run
    from qwen3_model.fused import FusedLayout

    layout = FusedLayout(source_qkv == "contiguous", source_mlp == "interleaved")
    request = AverageRequest(sources, weights, DTYPES[dtype] if dtype else None, hf_dir, layout)
    shares = run(request, output, force=force, quiet=quiet, shard_bytes=shard_bytes)
    say(f"averaged {len(shares)} sources, {', '.join(f'{share:.4g}' for share in shares)}: {output}")
