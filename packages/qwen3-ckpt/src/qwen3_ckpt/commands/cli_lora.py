"""The commands `qwen3-ckpt lora ...`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen3_ckpt.commands.cli_options import (
    A_FOLDER,
    A_PATH,
    FiniteRange,
    dtype_option,
    echo_notes,
    hf_dir_option,
    layout_options,
    shard_option,
)
from qwen3_model.command.base import Commands, force_option, quiet_option, say

if TYPE_CHECKING:
    from qwen3_model.checkpoints.fused import FusedLayout

alpha_option = click.option(
    "--lora-alpha",
    type=FiniteRange(min=0, min_open=True),
    help="Read from adapter_config.json by default.",
)


@click.group(cls=Commands)
def lora() -> None:
    """Fuse LoRA adapters into a model, or export them for PEFT."""


@lora.command()
@click.argument("base", type=A_FOLDER)
@click.argument("adapter", type=A_FOLDER)
@click.argument("output", type=A_PATH)
@alpha_option
@dtype_option
@click.option("--any-base", is_flag=True, help="Take a base other than the one the adapter was trained on.")
@layout_options("source")
@shard_option
@force_option()
@quiet_option()
def fuse(  # noqa: PLR0913 - one parameter a flag
    base: Path,
    adapter: Path,
    output: Path,
    lora_alpha: float | None,
    dtype: str | None,
    any_base: bool,
    source_layout: "FusedLayout",
    shard_bytes: int,
    force: bool,
    quiet: bool,
) -> None:
    """Add an adapter to its base, as a Hugging Face folder.

    The sum is made in float32. ADAPTER is a PEFT folder or a checkpoint with adapter weights.

    \b
    Example:
      qwen3-ckpt lora fuse Qwen3-0.6B output/checkpoint fused
    """
    from qwen3_ckpt.operations.lora import AdapterSource, FuseRequest, fuse_lora

    source = AdapterSource(adapter, lora_alpha, base, source_layout)
    request = FuseRequest(base, source, dtype, any_base=any_base)
    adapters, notes = fuse_lora(request, output, force=force, quiet=quiet, shard_bytes=shard_bytes)
    echo_notes(notes)
    say(f"fused {len(adapters.modules) + len(adapters.saved)} adapters: {output}")


@lora.command()
@click.argument("source", type=A_FOLDER)
@click.argument("output", type=A_PATH)
@click.option("--base-model", default="", help="Name or folder of the base; the run's own by default.")
@alpha_option
@layout_options("source")
@hf_dir_option
@force_option()
def export(
    source: Path,
    output: Path,
    base_model: str,
    lora_alpha: float | None,
    source_layout: "FusedLayout",
    hf_dir: Path | None,
    force: bool,
) -> None:
    """Write the adapter of a run as a PEFT folder.

    SOURCE is the run, its checkpoint, or another folder with adapter weights.

    \b
    Example:
      qwen3-ckpt lora export output/checkpoint adapter --base-model Qwen/Qwen3-0.6B
    """
    from qwen3_ckpt.operations.lora import AdapterSource, export_lora

    adapters = export_lora(
        AdapterSource(source, lora_alpha, hf_dir, source_layout), output, base_model, force=force
    )
    say(f"exported {len(adapters.modules)} adapters of rank {adapters.rank}: {output}")
