"""The command `qwen3-ckpt`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen3_ckpt import __version__
from qwen3_ckpt.commands.cli_average import average
from qwen3_ckpt.commands.cli_check import diff, inspect, verify
from qwen3_ckpt.commands.cli_lora import lora
from qwen3_ckpt.commands.cli_options import (
    A_FOLDER,
    A_PATH,
    HfOptions,
    echo_notes,
    hf_output_options,
    layout_options,
)
from qwen3_ckpt.commands.cli_reshard import reshard
from qwen3_model.command.base import Commands, say

if TYPE_CHECKING:
    from qwen3_model.checkpoints.fused import FusedLayout


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="qwen3-ckpt")
def main() -> None:
    """Merge, convert, compare and check Qwen3 checkpoints. Needs no MindSpore."""


for command in (average, diff, inspect, lora, reshard, verify):
    main.add_command(command)


@main.command()
@click.option("--mindspore-ckpt-dir", required=True, type=A_FOLDER, help="Folder with rank_0, rank_1, ...")
@click.option(
    "--src-strategy-dirs", type=click.Path(path_type=Path, exists=True),
    help="Folder of ckpt_strategy_rank_*.ckpt, one such file, or a merged one. Not needed for one rank.",
)  # fmt: skip
@click.option("--output-dir", required=True, type=A_PATH, help="Where the result goes.")
@click.option(
    "--file-suffix", metavar="E_S", help="Epoch and step; the newest that every rank has by default."
)
@click.option(
    "--to", "target", type=click.Choice(["mindspore", "hf"]), default="mindspore", show_default=True,
    help="MindSpore's unified layout below OUTPUT_DIR, or OUTPUT_DIR as a Hugging Face folder.",
)  # fmt: skip
@click.option(
    "--filter-out-param-prefix",
    multiple=True,
    metavar="PREFIX",
    help="Leave out tensors so named, such as adam_.",
)
@click.option("--check-replicas", is_flag=True, help="Compare the ranks that should hold equal slices.")
@click.option(
    "--has-redundancy", type=bool, help="Whether equal tensors are in every rank; seen from the files."
)
@click.option("--max-process-num", type=click.IntRange(min=1), help="Files to write at a time, at most 4.")
@click.option("--format", type=click.Choice(["safetensors"]), help="Accepted for compatibility.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be written.")
@hf_output_options
def merge(  # noqa: PLR0913 - the flags of the tool that it replaces
    mindspore_ckpt_dir: Path,
    src_strategy_dirs: Path | None,
    output_dir: Path,
    file_suffix: str | None,
    target: str,
    filter_out_param_prefix: tuple[str, ...],
    check_replicas: bool,
    has_redundancy: bool | None,
    max_process_num: int | None,
    format: str | None,
    dry_run: bool,
    hf: HfOptions,
) -> None:
    """Merge a distributed checkpoint into whole tensors.

    \b
    Example:
      qwen3-ckpt merge --mindspore-ckpt-dir output/checkpoint --src-strategy-dirs output/strategy \\
          --output-dir merged --file-suffix 1_200
    """
    from qwen3_ckpt.operations.merge import MergeRequest, plan_output, prepare, write_output
    from qwen3_model.errors import UsageError

    del format
    if hf.dtype and target != "hf":
        raise UsageError("--dtype goes with --to hf; the unified layout keeps the types of the ranks")
    request = MergeRequest(
        checkpoint_dir=mindspore_ckpt_dir,
        strategy=src_strategy_dirs,
        suffix=file_suffix,
        filter_out_prefixes=filter_out_param_prefix,
        check_replicas=check_replicas,
        hf_dir=hf.hf_dir,
        layout=hf.layout,
        has_redundancy=has_redundancy,
        dtype=hf.dtype,
    )
    prepared = prepare(request)
    echo_notes(prepared.notes)
    result = plan_output(prepared, output_dir, target, force=hf.force)
    summary = f"step {prepared.checkpoint.suffix}: {len(result.tensors)} tensors, {result.size_bytes:,} bytes"
    if dry_run:
        ranks = prepared.checkpoint.ranks.files.values() if prepared.checkpoint.ranks else ()
        say(f"would merge {summary} from {len(ranks)} ranks into {result.folder}")
        for file in ranks:
            say(f"would read {file.source.size_bytes:,} bytes of {file.path}")
        say(f"would need {result.size_bytes:,} bytes on the disk and less than 256 MB of memory")
        return
    notes = write_output(
        prepared, result, force=hf.force, quiet=hf.quiet, shard_bytes=hf.shard_bytes, workers=max_process_num
    )
    echo_notes(notes)
    say(f"merged {summary}: {result.folder}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=A_PATH)
@click.option(
    "--to", "target", type=click.Choice(["hf", "ours", "mindformers"]), default="hf", show_default=True,
    help="A Hugging Face folder, unified files with its names, or those with fused weights.",
)  # fmt: skip
@layout_options("target")
@hf_output_options
def convert(source: Path, output: Path, target: str, target_layout: "FusedLayout", hf: HfOptions) -> None:
    """Convert the whole weights in SOURCE to OUTPUT.

    SOURCE is a Hugging Face folder, what `merge` wrote, or one safetensors file; what it is, is seen from its
    files and names.

    \b
    Examples:
      qwen3-ckpt convert merged hf_model --dtype bf16
      qwen3-ckpt convert Qwen3-0.6B unified --to mindformers
    """
    from qwen3_ckpt.operations.convert import ConvertRequest
    from qwen3_ckpt.operations.convert import convert as run

    request = ConvertRequest(
        source=source,
        target=target,
        source_layout=hf.layout,
        target_layout=target_layout,
        dtype=hf.dtype,
        hf_dir=hf.hf_dir,
    )
    notes = run(request, output, force=hf.force, quiet=hf.quiet, shard_bytes=hf.shard_bytes)
    echo_notes(notes)
    say(f"converted {source}: {output}")
