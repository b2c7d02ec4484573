"""The commands `qwen3-ckpt lora ...`."""

from pathlib import Path

import click

from qwen3_ckpt.cli_options import (
    A_FOLDER,
    A_PATH,
    FiniteRange,
    hf_dir_option,
    shard_option,
    source_layout_options,
)
from qwen3_model.cli_base import Commands, force_option, quiet_option

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
@source_layout_options
@shard_option
@force_option()
@quiet_option()
def fuse(  # noqa: PLR0913 - one parameter a flag
    base: Path,
    adapter: Path,
    output: Path,
    lora_alpha: float | None,
    source_qkv: str,
    source_mlp: str,
    shard_bytes: int,
    force: bool,
    quiet: bool,
) -> None:
    """Write OUTPUT, a Hugging Face folder: the weights of BASE plus ADAPTER's, added in float32.

    ADAPTER is a PEFT folder or a checkpoint with adapter weights.

    \b
    Example:
      qwen3-ckpt lora fuse Qwen3-0.6B output/checkpoint fused
    """
    from qwen3_ckpt.lora import AdapterSource, fuse_lora
    from qwen3_model.adapters import EMBEDDING
    from qwen3_model.config import Qwen3Config
    from qwen3_model.fused import FusedLayout

    layout = FusedLayout(source_qkv == "contiguous", source_mlp == "interleaved")
    source = AdapterSource(adapter, lora_alpha, base, layout)
    adapters = fuse_lora(base, source, output, force=force, quiet=quiet, shard_bytes=shard_bytes)
    if EMBEDDING in adapters.modules and Qwen3Config.from_dir(base).tie_word_embeddings:
        click.echo(
            "Note: the head is tied to the embedding, so the embedding's adapter changes it, too", err=True
        )
    click.echo(f"fused {len(adapters.modules)} adapters: {output}")


@lora.command()
@click.argument("source", type=A_FOLDER)
@click.argument("output", type=A_PATH)
@click.option("--base-model", default="", help="Name or folder of the base; the run's own by default.")
@alpha_option
@source_layout_options
@hf_dir_option
@force_option()
def export(  # noqa: PLR0913 - one parameter a flag
    source: Path,
    output: Path,
    base_model: str,
    lora_alpha: float | None,
    source_qkv: str,
    source_mlp: str,
    hf_dir: Path | None,
    force: bool,
) -> None:
    """Write OUTPUT, a PEFT folder, from the adapter weights in SOURCE.

    \b
    Example:
      qwen3-ckpt lora export output/checkpoint adapter --base-model Qwen/Qwen3-0.6B
    """
    from qwen3_ckpt.lora import AdapterSource, export_lora
    from qwen3_model.fused import FusedLayout

    layout = FusedLayout(source_qkv == "contiguous", source_mlp == "interleaved")
    adapters = export_lora(AdapterSource(source, lora_alpha, hf_dir, layout), output, base_model, force=force)
    click.echo(f"exported {len(adapters.modules)} adapters of rank {adapters.rank}: {output}")
