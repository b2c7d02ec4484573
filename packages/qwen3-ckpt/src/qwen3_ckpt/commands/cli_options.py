"""Options that several commands share."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen3_model.command.base import force_option, quiet_option, say
from qwen3_model.command.types import BYTES, DTYPE

if TYPE_CHECKING:
    from qwen3_model.checkpoints.fused import FusedLayout

A_PATH = click.Path(path_type=Path)
A_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
QKV = click.Choice(["grouped", "contiguous"])
MLP = click.Choice(["interleaved", "contiguous"])

SAFETENSORS_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class FiniteRange(click.FloatRange):
    """A range of floats without NaN, which compares with nothing, and infinity."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


shard_option = click.option(
    "--max-shard-size", "shard_bytes", type=BYTES, default="5GB", show_default=True,
    metavar="SIZE", help="Largest file of a Hugging Face folder.",
)  # fmt: skip
dtype_option = click.option(
    "--dtype",
    type=DTYPE,
    callback=lambda _, __, value: SAFETENSORS_NAMES[value] if value else None,
    help="Element type of a Hugging Face folder; kept by default.",
)
hf_dir_option = click.option(
    "--hf-dir", type=A_FOLDER, help="Folder of config.json and tokenizer files; looked for beside the source."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HfOptions:
    """Options that all commands have which write a Hugging Face folder."""

    dtype: str | None
    """BF16, F16 or F32; None to keep each tensor's."""
    layout: "FusedLayout"
    """Row order of fused weights in the source."""
    hf_dir: Path | None
    """Folder with config.json and tokenizer files; None to look beside the source."""
    shard_bytes: int
    """Largest file."""
    force: bool
    quiet: bool


def hf_output_options(function: Callable[..., object]) -> Callable[..., object]:
    """Add the options of commands that write a Hugging Face folder, which come as `hf`, an HfOptions."""

    @functools.wraps(function)
    def wrapped(
        *,
        dtype: str | None,
        source_layout: "FusedLayout",
        hf_dir: Path | None,
        shard_bytes: int,
        force: bool,
        quiet: bool,
        **others: object,
    ) -> object:
        hf = HfOptions(
            dtype=dtype,
            layout=source_layout,
            hf_dir=hf_dir,
            shard_bytes=shard_bytes,
            force=force,
            quiet=quiet,
        )
        return function(hf=hf, **others)

    options: tuple[Callable[[Callable[..., object]], Callable[..., object]], ...] = (
        quiet_option(), force_option(), shard_option, hf_dir_option, layout_options("source"), dtype_option,
    )  # fmt: skip
    decorated: Callable[..., object] = wrapped
    for option in options:
        decorated = option(decorated)
    return decorated


def echo_notes(notes: Iterable[str]) -> None:
    """Print notes on what was read or written to stderr."""
    for note in notes:
        say(f"Note: {note}", err=True)


def layout_options(side: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Return a decorator that adds --SIDE-qkv and --SIDE-mlp, which come as SIDE_layout, a FusedLayout."""

    def add(function: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(function)
        def wrapped(**options: object) -> object:
            from qwen3_model.checkpoints.fused import FusedLayout

            qkv, mlp = options.pop(f"{side}_qkv"), options.pop(f"{side}_mlp")
            return function(
                **{f"{side}_layout": FusedLayout(qkv == "contiguous", mlp == "interleaved")}, **options
            )

        mlp = click.option(
            f"--{side}-mlp", type=MLP, default="interleaved", show_default=True,
            help=f"Rows of fused gate and up in the {side}.",
        )  # fmt: skip
        qkv = click.option(
            f"--{side}-qkv", type=QKV, default="grouped", show_default=True,
            help=f"Rows of fused q, k and v in the {side}.",
        )  # fmt: skip
        return qkv(mlp(wrapped))

    return add
