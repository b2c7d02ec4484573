"""The commands that measure a model: `score` and `eval`."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from qwen3_infer.cli_options import MODEL_OPTIONS, ArgumentKeeper, make_device, with_options
from qwen3_model.command.base import CONTEXT, force_option, note, quiet_option, say
from qwen3_model.command.narrow import as_flag, as_int, as_text, build, optional
from qwen3_model.command.options import hide_option, limit_option
from qwen3_model.command.parsing import Option
from qwen3_model.command.plain_text import counted
from qwen3_model.ranks.msrun.checks import LaunchSettings
from qwen3_model.ranks.msrun.cli_options import launch_options

MODEL_KEYS = ("pretrained_model_dir", "load_checkpoint", "adapter", "device_target")


@click.command(cls=ArgumentKeeper, context_settings=CONTEXT | {"ignore_unknown_options": True})
@with_options(MODEL_OPTIONS)
@click.option(
    "--input",
    "data",
    cls=Option,
    old=("--data",),
    multiple=True,
    metavar="FILE",
    help="A text, which is one document; a .jsonl file with a document a line; or token files by their "
    "prefix, .bin or .idx. May be repeated.",
)
@click.option(
    "--json-keys", "json_key", cls=Option, old=("--json-key",), metavar="KEY", default="text",
    show_default=True, help="Key of the text in a JSON line.",
)  # fmt: skip
@click.option("--window", type=int, help="Tokens read at once at most.  [default: 2048, or the context]")
@click.option(
    "--stride", type=int, help="Tokens that each window after the first predicts.  [default: half a window]"
)
@limit_option("The first N documents alone.")
@click.option(
    "--begin-with-eod",
    is_flag=True,
    help="Put <|endoftext|> before each document: its first token counts too.",
)
@click.option("--allow-special", is_flag=True, help="Take <|im_end|> and the like in texts as tokens.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON lines: each document's score, then the total.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the total as JSON.")
@force_option("existing results")
@quiet_option()
@hide_option("--join")
@launch_options
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def score(
    context: click.Context,
    /,
    config_path: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    make_launch: Callable[[Path], LaunchSettings],
    **options: object,
) -> None:
    """Measure how well the model predicts a text.

    The measures are perplexity and bits per byte. Any key of the YAML may follow as --section.key VALUE.

    A document longer than the window is read in windows that overlap; every token but the first is predicted
    once, after at least window - stride others where the document has them.

    \b
    Example:
      qwen3-infer score --pretrained-model-dir Qwen3-0.6B --input wikitext_test.txt
      qwen3-infer score --pretrained-model-dir Qwen3-0.6B --input held_out_text_document --limit 200 \\
        --window 4096 --stride 1024 --output scores.jsonl
      qwen3-infer score --worker-num 2 --pretrained-model-dir Qwen3-32B --input wikitext_test.txt
    """
    from qwen3_infer.cli_launch import read_launch, read_worker_num, runs_for_another
    from qwen3_infer.evaluate.score_data import Reading
    from qwen3_infer.evaluate.score_run import ScoreSettings, run_score
    from qwen3_infer.settings.settings import read_settings
    from qwen3_model.device.simulation import Simulation

    kernels, threads = as_text(options.pop("kernels")), optional(as_int, options.pop("threads"))
    run = read_settings(
        config_path,
        {name: options.pop(name) for name in MODEL_KEYS},
        overrides,
        worker_num=read_worker_num(make_launch),
        environment=os.environ,
    )
    launch, device = read_launch(context, make_launch, run.output_dir), make_device(run, kernels, threads)
    if runs_for_another(context, run, device, launch, quiet=as_flag(options["quiet"])):
        return
    is_dry = isinstance(launch, Simulation)
    if is_dry:
        options["output"] = None
    names = ("json_key", "allow_special", "limit")
    reading = build(Reading, {name: options.pop(name) for name in names})
    settings = build(ScoreSettings, options | {"model": run, "reading": reading})
    total = run_score(
        settings,
        device,
        note=note,
        launch=launch,
    )
    if is_dry:
        return
    if as_json:
        figures = asdict(total) | {"perplexity": total.perplexity, "bits_per_byte": total.bits_per_byte}
        say(json.dumps(figures))
    else:
        say(
            f"perplexity {total.perplexity:.4f}, {total.bits_per_byte:.4f} bits per byte "
            f"({counted(total.num_tokens, 'token')} predicted, {counted(total.num_bytes, 'byte')})"
        )


@click.command("eval", cls=ArgumentKeeper, context_settings=CONTEXT | {"ignore_unknown_options": True})
@with_options(MODEL_OPTIONS)
@hide_option("--join")
@launch_options
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    config_path: Path | None,
    kernels: str,
    threads: int | None,
    arguments: tuple[str, ...],
    make_launch: Callable[[Path], LaunchSettings],
    **model: object,
) -> None:
    """Run tasks of lm_eval, the evaluation harness.

    It is EleutherAI's. All further options are lm_eval's own: --tasks, --num_fewshot, --limit, --batch_size,
    --apply_chat_template, --gen_kwargs, --include_path, --output_path, --log_samples and so on; lm_eval run
    --help tells them. --model_args takes max_length, enable_thinking, think_end_token and seed.

    It is installed apart from this package: pip install 'lm_eval>=0.4.13,<0.5'.

    \b
    Example:
      qwen3-infer eval --pretrained-model-dir Qwen3-0.6B --tasks hellaswag,arc_easy --num_fewshot 5
      qwen3-infer eval --pretrained-model-dir Qwen3-0.6B --tasks gsm8k --apply_chat_template \\
        --model_args enable_thinking=False --batch_size 8 --limit 100 --output_path results
    """
    from qwen3_infer.cli_launch import read_launch, read_worker_num, runs_for_another
    from qwen3_infer.evaluate.harness_run import run_harness
    from qwen3_infer.settings.settings import read_settings

    worker_num = read_worker_num(make_launch)
    run = read_settings(config_path, model, (), worker_num=worker_num, environment=os.environ)
    launch, device = read_launch(context, make_launch, run.output_dir), make_device(run, kernels, threads)
    if not runs_for_another(context, run, device, launch, quiet=True):
        run_harness(run, device, arguments, launch)
