"""The command line of qwen3-model; nothing here needs MindSpore."""

import json
from pathlib import Path

import click

from qwen3_model import __version__
from qwen3_model.command.base import Commands, force_option, quiet_option, say, say_lines
from qwen3_model.command.plain_text import counted
from qwen3_model.command.types import DTYPE


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="qwen3-model")
def main() -> None:
    """Look at, check and make Qwen3 models in Hugging Face format."""


@main.command()
@click.argument("source", metavar="DIR|SIZE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(source: str, *, as_json: bool) -> None:
    """Print sizes, parameters and bytes of a model folder or a size.

    The model is a folder, a config.json, or a released size: 0.6B, 0.6b or Qwen3-0.6B.

    \b
    Example:
      qwen3-model info 0.6B
    """
    from qwen3_model.checkpoints.describe import describe, to_text

    facts = describe(source)
    say_lines(json.dumps(facts) if as_json else to_text(facts))


@main.command()
@click.argument("hf_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@quiet_option()
def verify(hf_dir: Path, *, quiet: bool) -> None:
    """Check a Hugging Face folder; exit 1 with its faults.

    object are config, index, tokenizer, and each tensor's presence, shape, dtype and numbers. A run, a
    checkpoint or an adapter is checked by qwen3-ckpt verify, which says of a model folder the same as this.

    \b
    Example:
      qwen3-model verify Qwen3-0.6B
    """
    from qwen3_model.checkpoints.verify import find_faults
    from qwen3_model.checkpoints.weight_files import is_no_model_folder
    from qwen3_model.errors import UsageError, WeightError

    if is_no_model_folder(hf_dir):
        raise UsageError(
            f"{hf_dir} is no Hugging Face folder but a run, a checkpoint or an adapter; check it with "
            f"`qwen3-ckpt verify {hf_dir}`"
        )
    num_faults = 0
    for fault in find_faults(hf_dir, quiet=quiet):
        num_faults += 1
        say(fault)
    if num_faults:
        raise WeightError(f"{hf_dir} has {counted(num_faults, 'fault')}, listed above")
    say(f"{hf_dir} is sound")


@main.command()
@click.argument("source", metavar="SIZE|CONFIG")
@click.argument("out_dir", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same bytes.")
@click.option(
    "--dtype",
    type=DTYPE,
    help="Element type of the weights; that of the config when left out.",
)
@click.option(
    "--tokenizer-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Copy the tokenizer's files from here.",
)
@force_option()
@quiet_option()
def init(
    source: str,
    out_dir: Path,
    *,
    seed: int,
    dtype: str | None,
    tokenizer_dir: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Write a Hugging Face folder with random weights.

    They are made for a released size, such as 0.6B, or for a config.json.

    \b
    Example:
      qwen3-model init 0.6B fresh-0.6B --seed 1 --dtype bfloat16
    """
    from qwen3_model.checkpoints.describe import find_config
    from qwen3_model.checkpoints.write_fresh import write_fresh
    from qwen3_model.command.files import refuse_existing
    from qwen3_model.config import SIZES

    config = find_config(source)
    refuse_existing(out_dir, force=force, sources=[] if source in SIZES else [Path(source)])
    write_fresh(
        config,
        out_dir,
        seed=seed,
        dtype=dtype or config.dtype,
        tokenizer_dir=tokenizer_dir,
        force=force,
        quiet=quiet,
    )
    say(f"{config.num_parameters():,} parameters in {out_dir}")
