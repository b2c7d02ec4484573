"""The command `qwen3-ckpt reshard`."""

from pathlib import Path

import click

from qwen3_ckpt.commands.cli_options import A_PATH, echo_notes, hf_dir_option
from qwen3_model.command.base import force_option, quiet_option, say
from qwen3_model.command.parsing import Command
from qwen3_model.command.plain_text import counted

A_COUNT = click.IntRange(min=1, max=1 << 16)


@click.command(cls=Command)
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=A_PATH)
@click.option("--data-parallel", "dp", type=A_COUNT, default=1, show_default=True, help="Replicas.")
@click.option("--model-parallel", "tp", type=A_COUNT, default=1, show_default=True, help="Tensor shards.")
@click.option("--pipeline-stage", "pp", type=A_COUNT, default=1, show_default=True, help="Pipeline stages.")
@click.option("--offset", default="", metavar="N,N,...", help="More or fewer layers for each stage.")
@click.option("--shard-optimizer", is_flag=True, help="Share the moments out over the replicas (ZeRO-1).")
@click.option("--drop-optimizer", is_flag=True, help="Leave out the moments: weights to begin another run.")
@click.option("--remove-redundancy", is_flag=True, help="Write equal slices in the first rank that has them.")
@click.option(
    "--src-strategy-dirs", type=click.Path(path_type=Path, exists=True),
    help="Strategy of a distributed SOURCE; its neighbour `strategy` by default.",
)  # fmt: skip
@click.option(
    "--file-suffix", metavar="E_S", help="Step of a distributed SOURCE; the newest whole one by default."
)
@hf_dir_option
@force_option()
@quiet_option()
def reshard(  # noqa: PLR0913 - one parameter a flag
    source: Path,
    output: Path,
    dp: int,
    tp: int,
    pp: int,
    offset: str,
    shard_optimizer: bool,
    drop_optimizer: bool,
    remove_redundancy: bool,
    src_strategy_dirs: Path | None,
    file_suffix: str | None,
    hf_dir: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Cut a checkpoint anew for other devices.

    SOURCE is a checkpoint of any form; OUTPUT becomes a folder with `checkpoint` and `strategy`.

    \b
    Example:
      qwen3-ckpt reshard output output_tp4 --model-parallel 4 --pipeline-stage 2
    """
    from qwen3_ckpt.operations.reshard import reshard as run
    from qwen3_ckpt.operations.reshard import without_optimizer
    from qwen3_ckpt.sources.placements import make_cut
    from qwen3_model.checkpoints.weight_files import open_checkpoint
    from qwen3_model.errors import UsageError
    from qwen3_model.ranks.layout import Layout

    try:
        shifts = [int(part) for part in offset.split(",")] if offset else []
    except ValueError:
        raise UsageError(f"--offset {offset} must be whole numbers with commas, one a stage") from None
    checkpoint = open_checkpoint(source, suffix=file_suffix, strategy=src_strategy_dirs)
    if drop_optimizer:
        checkpoint = without_optimizer(checkpoint)
    echo_notes(checkpoint.notes)
    cut = make_cut(
        list(checkpoint.tensors), Layout(dp=dp, tp=tp, pp=pp), shifts,
        shard_optimizer=shard_optimizer, remove_redundancy=remove_redundancy,
    )  # fmt: skip
    count = run(checkpoint, cut, output, hf_dir=hf_dir, force=force, quiet=quiet)
    say(f"resharded step {checkpoint.suffix} for {counted(count, 'rank')}: {output}")
