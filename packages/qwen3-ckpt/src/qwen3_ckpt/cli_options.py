"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

A_PATH = click.Path(path_type=Path)
A_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
QKV = click.Choice(["grouped", "contiguous"])
MLP = click.Choice(["interleaved", "contiguous"])

shard_option = click.option(
    "--max-shard-size", "shard_bytes", type=click.IntRange(min=1), default=5_000_000_000, show_default=True,
    metavar="BYTES", help="Largest file of a Hugging Face folder.",
)  # fmt: skip
hf_dir_option = click.option(
    "--hf-dir", type=A_FOLDER, help="Folder of config.json and tokenizer files; looked for beside the source."
)


def source_layout_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --source-qkv and --source-mlp: how rows lie in mindformers' fused weights."""
    return layout_options("source")(function)


def layout_options(side: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds --SIDE-qkv and --SIDE-mlp."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        mlp = click.option(
            f"--{side}-mlp", type=MLP, default="interleaved", show_default=True,
            help=f"Rows of fused gate and up in the {side}.",
        )  # fmt: skip
        qkv = click.option(
            f"--{side}-qkv", type=QKV, default="grouped", show_default=True,
            help=f"Rows of fused q, k and v in the {side}.",
        )  # fmt: skip
        return qkv(mlp(function))

    return add
