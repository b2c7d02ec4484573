"""The command line of qwen3-infer."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click

from qwen3_infer import __version__
from qwen3_infer.chat.interrupt import Interrupt
from qwen3_infer.cli_evaluate import evaluate, score
from qwen3_infer.cli_options import (
    ARGUMENTS,
    MODEL_OPTIONS,
    SAMPLING_OPTIONS,
    ArgumentKeeper,
    make_device,
    with_options,
)
from qwen3_infer.cli_plan import plan
from qwen3_infer.cli_serve import serve
from qwen3_infer.processes.rank import Rank
from qwen3_model.command.base import CONTEXT, Commands, force_option, note, quiet_option, say_lines
from qwen3_model.command.narrow import as_flag, as_int, as_text, optional
from qwen3_model.command.options import hide_option
from qwen3_model.command.parsing import Option
from qwen3_model.command.plain_text import without_controls
from qwen3_model.command.private_files import state_home
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.cli_options import launch_options


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="qwen3-infer")
def main() -> None:
    """Generate text with Qwen3 on MindSpore."""


main.add_command(score)
main.add_command(evaluate)
main.add_command(plan)
main.add_command(serve)


@main.command(cls=ArgumentKeeper, context_settings=CONTEXT | {"ignore_unknown_options": True})
@with_options(MODEL_OPTIONS)
@click.option(
    "--input",
    "predict_data",
    cls=Option,
    old=("--predict-data",),
    multiple=True,
    metavar="TEXT|FILE",
    help="A prompt, a .txt file with one prompt a line, or a .jsonl file with prompt or messages in each "
    "line; may be repeated. \\n in a prompt of text is a new line. mindformers' --predict_data is the same.",
)
@click.option(
    "--predict-batch-size", type=int, help="Prompts that run together, of any number.  [default: 1]"
)
@click.option(
    "--max-tokens-in-cache",
    type=click.IntRange(64),
    help="Room for what runs together; a prompt waits until there is enough.  [default: enough for all]",
)
@click.option("--save-file", metavar="FILE", help="Text result.  [default: text_generation_result.txt]")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Also write JSON lines.")
@with_options(SAMPLING_OPTIONS)
@click.option("--num-return-sequences", type=int, help="Completions of each prompt.  [default: 1]")
@click.option("--logprobs/--no-logprobs", default=None, help="With --output: each token's log-probability.")
@click.option("--chat/--no-chat", default=None, help="Put the model's chat template around each prompt.")
@click.option(
    "--thinking/--no-thinking", default=None, help="With --chat: think before answering, the default."
)
@click.option("--truncate", is_flag=True, help="Cut the beginning off prompts that are too long.")
@click.option(
    "--allow-special", is_flag=True, help="Take <|im_end|> and the like in plain prompts as tokens."
)
@click.option("--stream/--no-stream", default=None, help="Print text as it comes.  [default: at a terminal]")
@force_option("existing results")
@quiet_option()
@launch_options
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def generate(
    context: click.Context,
    /,
    config_path: Path | None,
    overrides: tuple[str, ...],
    output: Path | None,
    stream: bool | None,
    make_launch: Callable[[Path], LaunchSettings],
    **options: object,
) -> None:
    """Complete prompts.

    Any key of the YAML may follow as --section.key VALUE. Sampling follows the model's
    generation_config.json, then the YAML, then the flags.

    With --worker-num N the model is shared out over N processes, which MindSpore's msrun starts.

    \b
    Example:
      qwen3-infer generate --pretrained-model-dir Qwen3-0.6B --input 'The capital of France is' \\
        --max-new-tokens 32
      qwen3-infer generate --pretrained-model-dir Qwen3-0.6B --input questions.txt \\
        --predict-batch-size 8 --chat --no-thinking --output answers.jsonl
      qwen3-infer generate --worker-num 2 --pretrained-model-dir Qwen3-32B --input questions.txt
    """
    from qwen3_infer.cli_launch import read_worker_num, say_dry_run
    from qwen3_infer.generate.launch import launch_generate
    from qwen3_infer.generate.run import Output, run_generate, run_rank
    from qwen3_infer.generate.shown import ShownWriter
    from qwen3_infer.settings.settings import read_settings
    from qwen3_model.device.simulation import read_simulation

    kernels, threads = as_text(options.pop("kernels")), optional(as_int, options.pop("threads"))
    how = {name: as_flag(options.pop(name)) for name in ("truncate", "allow_special")}
    where = Output(
        records_path=output,
        force=as_flag(options.pop("force")),
        stream=sys.stdout.isatty() if stream is None else stream,
        quiet=as_flag(options.pop("quiet")),
        say=_say,
        note=note,
    )
    worker_num = read_worker_num(make_launch)
    settings = read_settings(config_path, options, overrides, worker_num=worker_num, environment=os.environ)
    rank: Rank | None = context.obj
    if simulation := read_simulation(os.environ):
        say_dry_run(simulation)
        run_rank(settings, make_device(settings, kernels, threads), where, None, simulation.rank, **how)
        return
    if rank is None and worker_num > 1:
        launch = make_launch(settings.output_dir)
        launch_generate(settings, where, launch, context.meta[ARGUMENTS], os.environ, **how)
        return
    device = make_device(settings, kernels, threads)
    if rank is None:
        run_generate(settings, device, where, **how)
    else:
        shown = ShownWriter(rank.log_dir) if rank.number == 0 else None
        run_rank(settings, device, where, shown, rank.number, **how)


@main.command(cls=ArgumentKeeper, context_settings=CONTEXT | {"ignore_unknown_options": True})
@with_options(MODEL_OPTIONS)
@with_options(SAMPLING_OPTIONS)
@click.option("--thinking/--no-thinking", default=None, help="Think before answering, the default.")
@click.option("--system", metavar="TEXT", help="System message, before the conversation.")
@click.option(
    "--context-tokens",
    type=click.IntRange(2),
    default=4096,
    show_default=True,
    help="Room for the conversation; the model's own context at most.",
)
@quiet_option()
@hide_option("--join")
@launch_options
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def chat(
    context: click.Context,
    /,
    config_path: Path | None,
    overrides: tuple[str, ...],
    system: str | None,
    context_tokens: int,
    quiet: bool,
    make_launch: Callable[[Path], LaunchSettings],
    **options: object,
) -> None:
    """Talk with the model.

    /help lists the commands, Ctrl-C stops an answer, Ctrl-D or /exit leaves. At a terminal lines can be
    edited and found again with the arrow keys; other input has a question a line.

    \b
    Example:
      qwen3-infer chat --pretrained-model-dir Qwen3-0.6B --no-thinking --temperature 0.7 --top-p 0.8
    """
    from qwen3_infer.chat.run import Terminal, run_chat
    from qwen3_infer.cli_launch import read_launch, read_worker_num, runs_for_another
    from qwen3_infer.settings.settings import read_settings

    kernels, threads = as_text(options.pop("kernels")), optional(as_int, options.pop("threads"))
    worker_num = read_worker_num(make_launch)
    settings = read_settings(config_path, options, overrides, worker_num=worker_num, environment=os.environ)
    launch, device = (
        read_launch(context, make_launch, settings.output_dir),
        make_device(settings, kernels, threads),
    )
    if runs_for_another(context, settings, device, launch, quiet=quiet):
        return
    interrupt = Interrupt()
    terminal = Terminal(
        lines=_lines(interrupt),
        say=_say,
        think=lambda text: click.secho(without_controls(text), nl=False, err=True, dim=True),
        note=partial(say_lines, err=True),
        interrupt=interrupt,
        quiet=quiet,
    )
    with interrupt:
        run_chat(settings, device, terminal, system=system, context_tokens=context_tokens, launch=launch)


def _say(text: str) -> None:
    """Print what a model says, of which a terminal obeys nothing and a file has everything."""
    click.echo(without_controls(text) if sys.stdout.isatty() else text, nl=False)


def _lines(interrupt: Interrupt) -> Iterator[str]:
    """Yield what the user types, or the lines of what is no terminal."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        from qwen3_infer.chat.editor import typed_lines

        state = state_home(os.environ)
        # Ctrl-C may come before the editor has the terminal; it ends the program no more than within it.
        interrupt.between_answers = lambda: click.echo("Ctrl-D or /exit leaves", err=True)
        yield from typed_lines(state / "qwen3-infer/chat_history", interrupt.between_answers)
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(
            errors="surrogateescape"
        )  # a line that is no UTF-8 does not end the conversation
    for line in sys.stdin:
        yield line.rstrip("\n")
