"""The command line of qwen3-infer."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from qwen3_infer import __version__
from qwen3_model.cli_base import CONTEXT, Commands, force_option, quiet_option


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="qwen3-infer")
def main() -> None:
    """Generate text with Qwen3 on MindSpore."""


SETTING_OPTIONS = (
    click.option(
        "--pretrained-model-dir", metavar="DIR", help="Hugging Face folder: config, weights, tokenizer."
    ),
    click.option(
        "--predict-data",
        multiple=True,
        metavar="TEXT|FILE",
        help="A prompt, a .txt file with one prompt a line, or a .jsonl file with prompt or messages in each "
        "line; may be repeated. \\n in a prompt of text is a new line.",
    ),
    click.option(
        "--predict-batch-size", type=int, help="Prompts that run together, of any number.  [default: 1]"
    ),
    click.option("--save-file", metavar="FILE", help="Text result.  [default: text_generation_result.txt]"),
    click.option("--device-target", type=click.Choice(["CPU", "Ascend"]), help="Device.  [default: CPU]"),
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
    click.option("--num-return-sequences", type=int, help="Completions of each prompt.  [default: 1]"),
    click.option(
        "--logprobs/--no-logprobs", default=None, help="With --output: each token's log-probability."
    ),
    click.option("--seed", type=int, help="Of the random numbers.  [default: 0]"),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."),
    click.option(
        "--stop-ids", "--stop-id", multiple=True, type=int, help="End at this token too; may be repeated."
    ),
    click.option("--chat/--no-chat", default=None, help="Put the model's chat template around each prompt."),
    click.option(
        "--thinking/--no-thinking", default=None, help="With --chat: think before answering, the default."
    ),
)


def _setting_options(command: Any) -> Any:
    for option in reversed(SETTING_OPTIONS):
        command = option(command)
    return command


@main.command(context_settings=CONTEXT | {"ignore_unknown_options": True})
@click.option(
    "--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), help="YAML of the run."
)
@_setting_options
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Also write JSON lines.")
@click.option("--truncate", is_flag=True, help="Cut the beginning off prompts that are too long.")
@click.option(
    "--allow-special", is_flag=True, help="Take <|im_end|> and the like in plain prompts as tokens."
)
@click.option("--stream/--no-stream", default=None, help="Print text as it comes.  [default: at a terminal]")
@click.option(
    "--kernels",
    type=click.Choice(["auto", "native", "portable"]),
    default="auto",
    show_default=True,
    help="On a CPU: C++ compiled at first use, or MindSpore's operators; auto takes the first that works.",
)
@click.option(
    "--threads", type=click.IntRange(1), help="Of the native kernels.  [default: OMP_NUM_THREADS or all]"
)
@force_option("existing results")
@quiet_option()
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def generate(
    config_path: Path | None,
    overrides: tuple[str, ...],
    output: Path | None,
    stream: bool | None,
    **options: Any,
) -> None:
    r"""Complete prompts; any key of the YAML may follow as --section.key VALUE.

    Sampling follows the model's generation_config.json, then the YAML, then the flags.

    \b
    Example:
      qwen3-infer generate --pretrained-model-dir Qwen3-0.6B --predict-data 'The capital of France is' \\
        --max-new-tokens 32
      qwen3-infer generate --pretrained-model-dir Qwen3-0.6B --predict-data questions.txt \\
        --predict-batch-size 8 --chat --no-thinking --output answers.jsonl
    """
    from qwen3_infer.device import Device
    from qwen3_infer.generate_run import Output, run_generate
    from qwen3_infer.settings import read_settings

    # MindSpore's own warnings would stand between the lines of text.
    os.environ.setdefault("GLOG_v", "3")
    truncate, allow_special = options.pop("truncate"), options.pop("allow_special")
    where = Output(
        records_path=output,
        force=options.pop("force"),
        stream=sys.stdout.isatty() if stream is None else stream,
        quiet=options.pop("quiet"),
        say=lambda text: click.echo(text, nl=False),
        note=lambda text: click.echo(text, err=True),
    )
    kernels, threads = options.pop("kernels"), options.pop("threads")
    settings = read_settings(config_path, options, overrides)
    device = Device(
        target=settings.device_target,
        kernels=kernels,
        num_threads=threads or _num_threads(),
        cache_dir=Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen3-infer",
    )
    run_generate(settings, device, where, truncate=truncate, allow_special=allow_special)


def _num_threads() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else len(os.sched_getaffinity(0))
