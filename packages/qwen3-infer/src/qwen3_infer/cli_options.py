"""The options that the commands of qwen3-infer share."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from qwen3_infer.device import Device
from qwen3_model.command.options import MAX_THREADS, device_option, threads_option
from qwen3_model.command.parsing import Command
from qwen3_model.command.private_files import cache_home

if TYPE_CHECKING:  # it reads YAML, which `--help` needs not
    from qwen3_infer.settings.settings import RunSettings

ARGUMENTS = "qwen3_infer.arguments"
Decorator: TypeAlias = Callable[[Callable[..., object]], Callable[..., object]]


class ArgumentKeeper(Command):
    """A command whose context keeps its arguments as they were given, for workers that read them again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


MODEL_OPTIONS: tuple[Decorator, ...] = (
    click.option(
        "--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), help="YAML of the run."
    ),
    click.option(
        "--pretrained-model-dir", metavar="DIR", help="Hugging Face folder: config, weights, tokenizer."
    ),
    click.option(
        "--load-checkpoint",
        metavar="PATH",
        help="Weights in place of the folder's: a training run, a checkpoint of any layout, merged or not.",
    ),
    click.option("--adapter", metavar="DIR", help="LoRA adapter: PEFT's folder, or a run that trained one."),
    device_option(),
    click.option(
        "--kernels",
        type=click.Choice(["auto", "native", "native-bf16", "portable"]),
        default="auto",
        show_default=True,
        help="On a CPU: C++ compiled at first use, or MindSpore's operators; auto: the first that works. "
        "native-bf16 rounds what weights multiply to bfloat16: prompts are read faster, tokens may differ.",
    ),
    threads_option(),
)
SAMPLING_OPTIONS: tuple[Decorator, ...] = (
    click.option("--max-new-tokens", type=int, help="Longest completion.  [default: the model's, or 512]"),
    click.option("--do-sample/--no-do-sample", default=None, help="Draw tokens, or take the likeliest."),
    click.option("--temperature", type=float, help="Divides the logits; 0 takes the likeliest token."),
    click.option("--top-k", type=int, help="Draw from that many likeliest tokens; 0 for all."),
    click.option("--top-p", type=float, help="Draw from the likeliest tokens that reach this probability."),
    click.option("--min-p", type=float, help="Draw from tokens this probable relative to the likeliest."),
    click.option("--repetition-penalty", type=float, help="Divides logits of tokens already in the text."),
    click.option(
        "--presence-penalty", type=float, help="Subtracted from logits of tokens already generated."
    ),
    click.option("--seed", type=int, help="Of the random numbers.  [default: 0]"),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."),
    click.option(
        "--stop-ids", "--stop-id", multiple=True, type=int, help="End at this token too; may be repeated."
    ),
)


def with_options(options: Sequence[Decorator]) -> Decorator:
    """Return a decorator that adds `options` to a command, in their order."""

    def decorate(command: Callable[..., object]) -> Callable[..., object]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def make_device(run: "RunSettings", kernels: str, threads: int | None) -> Device:
    """Return the device that the settings, the options and the environment describe."""
    # MindSpore's own warnings would stand between the lines of text.
    os.environ.setdefault("GLOG_v", "3")
    cache_dir = cache_home(os.environ) / "qwen3-infer"
    return Device(
        target=run.device_target,
        ascend=replace(run.ascend, work_dir=cache_dir / "mindspore"),
        kernels=kernels,
        num_threads=threads or _num_threads(),
        cache_dir=cache_dir,
    )


def _num_threads() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    number = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 10 else 0
    return min(number, MAX_THREADS) or len(os.sched_getaffinity(0))
