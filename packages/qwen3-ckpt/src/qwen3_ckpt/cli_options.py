"""Options that several commands share."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

A_PATH = click.Path(path_type=Path)
A_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
QKV = click.Choice(["grouped", "contiguous"])
MLP = click.Choice(["interleaved", "contiguous"])

DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


class Size(click.ParamType):
    """Bytes, as a number or with a unit such as 5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)", value)
        if not match or match[2].upper() not in UNITS or float(match[1]) == 0:
            self.fail(f"{value!r} is no size such as 5GB, 500MB or a number of bytes", param, ctx)
        return max(1, int(float(match[1]) * UNITS[match[2].upper()]))


class FiniteRange(click.FloatRange):
    """A range of floats without NaN, which compares with nothing, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


shard_option = click.option(
    "--max-shard-size", "shard_bytes", type=Size(), default="5GB", show_default=True,
    metavar="SIZE", help="Largest file of a Hugging Face folder.",
)  # fmt: skip
dtype_option = click.option(
    "--dtype",
    type=click.Choice(sorted(DTYPES)),
    help="Element type of a Hugging Face folder; kept by default.",
)
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
