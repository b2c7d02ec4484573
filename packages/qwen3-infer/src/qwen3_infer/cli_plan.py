"""The `plan` command."""

import json
from pathlib import Path

import click

from qwen3_model.command.base import CONTEXT
from qwen3_model.command.options import device_memory_option
from qwen3_model.command.parsing import Command
from qwen3_model.errors import ConfigError


@click.command(cls=Command, context_settings=CONTEXT | {"ignore_unknown_options": True})
@click.option(
    "--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), help="YAML of the run."
)
@click.option(
    "--pretrained-model-dir", metavar="DIR|SIZE", help="Folder with a config.json, or a size such as 32B."
)
@click.option(
    "--worker-num",
    type=click.IntRange(1),
    help="Devices that share the model out.  [default: the YAML's, or 1]",
)
@click.option("--predict-batch-size", type=int, help="Requests that run together.  [default: 1]")
@click.option(
    "--prompt-tokens", type=click.IntRange(1), default=1024, show_default=True,
    help="Of the longest prompt.",
)  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest completion.  [default: 512]")
@click.option(
    "--max-tokens-in-cache", type=click.IntRange(64),
    help="Room for what runs together, as of generate and serve.  [default: enough for all]",
)  # fmt: skip
@device_memory_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def plan(
    config_path: Path | None,
    worker_num: int | None,
    prompt_tokens: int,
    max_device_memory: int | None,
    as_json: bool,
    overrides: tuple[str, ...],
    **flags: object,
) -> None:
    """Say what memory generating takes of an Ascend device.

    That is weights, cache, and the steps' own work. Needs no device, and of the model its config.json
    alone. Any key of the YAML may follow as --section.key VALUE. The exit code is 1 when it does not fit.

    \b
    Example:
      qwen3-infer plan --pretrained-model-dir 32B --worker-num 4 --predict-batch-size 16 \\
        --max-device-memory 58GB
      qwen3-infer plan --config configs/qwen3/predict_qwen3.yaml --pretrained-model-dir Qwen3-0.6B
    """
    from qwen3_infer.plan.memory import plan_memory
    from qwen3_infer.plan.settings import read_plan_settings
    from qwen3_infer.plan.text import misfit, plan_text, plan_values

    settings = read_plan_settings(
        config_path,
        flags,
        overrides,
        worker_num=worker_num,
        prompt_tokens=prompt_tokens,
        max_memory=max_device_memory,
    )
    click.echo(json.dumps(plan_values(settings), indent=2) if as_json else plan_text(settings))
    if problem := misfit(settings, plan_memory(settings)):
        raise ConfigError(problem)
