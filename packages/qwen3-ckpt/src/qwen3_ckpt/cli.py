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
from qwen3_model.command.options import threads_option
from qwen3_model.command.parsing import Option
from qwen3_model.command.plain_text import counted
from qwen3_model.command.types import RenamedChoice

if TYPE_CHECKING:
    from qwen3_model.checkpoints.fused import FusedLayout


OLD_TARGETS = {"ours": "mindspore"}


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="qwen3-ckpt")
def main() -> None:
    """Merge, convert, compare and check Qwen3 checkpoints. Needs no MindSpore."""


for command in (average, diff, inspect, lora, reshard, verify):
    main.add_command(command)


@main.command()
@click.argument("source", required=False, type=A_FOLDER)
@click.argument("output", required=False, type=A_PATH)
@click.option("--mindspore-ckpt-dir", type=A_FOLDER, help="Folder with rank_0, rank_1, ..., as SOURCE.")
@click.option(
    "--src-strategy-dirs", type=click.Path(path_type=Path, exists=True),
    help="Folder of ckpt_strategy_rank_*.ckpt, one such file, or a merged one; looked for beside the source.",
)  # fmt: skip
@click.option("--output-dir", type=A_PATH, help="Where the result goes, as OUTPUT.")
@click.option(
    "--file-suffix", metavar="E_S", help="Epoch and step; the newest that every rank has by default."
)
@click.option(
    "--to", "target", type=RenamedChoice(["mindspore", "hf"], OLD_TARGETS), default="mindspore",
    show_default=True, help="MindSpore's unified layout below OUTPUT, or OUTPUT as a Hugging Face folder.",
)  # fmt: skip
@click.option(
    "--filter-out-param-prefix",
    multiple=True,
    metavar="PREFIX",
    help="Leave out tensors so named, such as adam_.",
)
@click.option("--check-replicas", is_flag=True, help="Compare the ranks that should hold equal slices.")
@click.option(
    "--has-redundancy/--no-has-redundancy",
    cls=Option,
    takes_words=True,
    default=None,
    hidden=True,
    help="Whether equal tensors are in every rank; seen from the files.",
)
@threads_option("max_process_num", old=("--max-process-num",))
@click.option("--format", type=click.Choice(["safetensors"]), hidden=True, help="mindformers' only one.")
@click.option("--dry-run", is_flag=True, help="Check everything and say what would be written.")
@hf_output_options
def merge(  # noqa: PLR0913 - the flags of the tool that it replaces
    source: Path | None,
    output: Path | None,
    mindspore_ckpt_dir: Path | None,
    src_strategy_dirs: Path | None,
    output_dir: Path | None,
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

    SOURCE is the run's folder or its folder `checkpoint`. mindformers' options do the same.

    \b
    Examples:
      qwen3-ckpt merge output hf_model --to hf
      qwen3-ckpt merge --mindspore-ckpt-dir output/checkpoint --src-strategy-dirs output/strategy \\
          --output-dir merged --file-suffix 1_200
    """
    from qwen3_ckpt.operations.merge import MergeRequest, plan_output, prepare, write_output
    from qwen3_model.errors import UsageError

    del format
    checkpoint_dir = _one_of("SOURCE", source, "--mindspore-ckpt-dir", mindspore_ckpt_dir)
    if source is not None and output is None and output_dir is None:
        raise UsageError(f"name where the result goes: qwen3-ckpt merge {source} OUTPUT")
    output_dir = _one_of("OUTPUT", output, "--output-dir", output_dir)
    if hf.dtype and target != "hf":
        raise UsageError("--dtype goes with --to hf; the unified layout keeps the types of the ranks")
    request = MergeRequest(
        checkpoint_dir=checkpoint_dir,
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
    tensors = counted(len(result.tensors), "tensor")
    summary = f"step {prepared.checkpoint.suffix}: {tensors}, {result.size_bytes:,} bytes"
    if dry_run:
        ranks = prepared.checkpoint.ranks.files.values() if prepared.checkpoint.ranks else ()
        say(f"would merge {summary} from {counted(len(ranks), 'rank')} into {result.folder}")
        for file in ranks:
            say(f"would read {file.source.size_bytes:,} bytes of {file.path}")
        say(f"would need {result.size_bytes:,} bytes on the disk and less than 256 MB of memory")
        return
    notes = write_output(
        prepared, result, force=hf.force, quiet=hf.quiet, shard_bytes=hf.shard_bytes, workers=max_process_num
    )
    echo_notes(notes)
    say(f"merged {summary}: {result.folder}")


def _one_of(name: str, positional: Path | None, option: str, value: Path | None) -> Path:
    """Return the path that is given as an argument or as an option, which are two names of one thing."""
    from qwen3_model.errors import UsageError

    given = [each for each in (positional, value) if each is not None]
    if len(given) != 1:
        what = "are both given" if given else "are both left out"
        raise UsageError(f"{name} and {option} {what}; write qwen3-ckpt merge SOURCE OUTPUT")
    return given[0]


@main.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("output", type=A_PATH)
@click.option(
    "--to", "target", type=RenamedChoice(["hf", "mindspore", "mindformers"], OLD_TARGETS), default="hf",
    show_default=True,
    help="A Hugging Face folder, MindSpore's unified files with its names, or those with fused weights.",
)  # fmt: skip
@layout_options("target")
@hf_output_options
def convert(source: Path, output: Path, target: str, target_layout: "FusedLayout", hf: HfOptions) -> None:
    """Convert whole weights into another form.

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
