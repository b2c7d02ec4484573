"""The commands of `qwen3-ckpt` that look and compare."""

from pathlib import Path

import click

from qwen3_ckpt.commands.cli_options import FiniteRange
from qwen3_model.command.base import quiet_option, say
from qwen3_model.command.parsing import Command
from qwen3_model.command.plain_text import counted

SOURCE = click.Path(path_type=Path, exists=True)


@click.command(cls=Command)
@click.argument("source", type=SOURCE)
@click.option("--file-suffix", metavar="E_S", help="Step of a distributed checkpoint; the newest by default.")
def inspect(source: Path, file_suffix: str | None) -> None:
    """Show ranks, steps, bytes and the tree of tensors of SOURCE.

    \b
    Example:
      qwen3-ckpt inspect output/checkpoint
    """
    from qwen3_ckpt.sources.inspect_source import describe

    for line in describe(source, file_suffix):
        say(line)


@click.command(cls=Command)
@click.argument("source", type=SOURCE)
@click.option("--write-manifest", is_flag=True, help="Write sha256.json, against which later checks compare.")
@quiet_option()
def verify(source: Path, *, write_manifest: bool, quiet: bool) -> None:
    """Check any checkpoint; exit 1 with its faults.

    SOURCE is a run, a distributed or merged checkpoint, an adapter, a file or a Hugging Face folder. object
    are headers, sizes, index, shapes, numbers, a model's tokenizer, and hashes where there is a sha256.json.

    \b
    Example:
      qwen3-ckpt verify hf_model --write-manifest
    """
    from qwen3_ckpt.operations.verify import find_faults
    from qwen3_ckpt.operations.verify import write_manifest as write
    from qwen3_model.command.progress import Progress
    from qwen3_model.errors import WeightError

    num_faults = 0
    with Progress("verify", None, "B", quiet=quiet) as progress:
        for fault in find_faults(source, progress.advance):
            num_faults += 1
            say(fault)
    if num_faults:
        raise WeightError(f"{source} has {counted(num_faults, 'fault')}, listed above")
    if write_manifest:
        say(f"wrote {write(source)}")
    say(f"{source} is sound")


@click.command(cls=Command)
@click.argument("first", type=SOURCE)
@click.argument("second", type=SOURCE)
@click.option("--tolerance", type=FiniteRange(min=0), default=0.0, help="Largest difference that is none.")
def diff(first: Path, second: Path, tolerance: float) -> None:
    """Compare two checkpoints; exit 1 when they differ.

    FIRST and SECOND are checkpoints of any form.

    \b
    Example:
      qwen3-ckpt diff merged hf_model
    """
    from qwen3_ckpt.operations.diff import Difference, differences, verdict
    from qwen3_model.checkpoints.weight_files import open_checkpoint

    left, right = open_checkpoint(first).tensors, open_checkpoint(second).tensors
    found: list[Difference] = []
    for difference in differences(left, right, tolerance=tolerance):
        found.append(difference)
        say(f"{difference.name}: {difference.what}")
    say(verdict(found, left, right), err=bool(found))
    if found:
        raise SystemExit(1)
