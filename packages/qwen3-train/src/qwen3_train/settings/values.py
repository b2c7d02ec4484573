"""Values of a YAML that can be checked without its files, by `launch` and `plan` alike."""

from collections.abc import Mapping

from qwen3_model.command.narrow import as_number
from qwen3_model.command.run_config import RunConfig
from qwen3_train.settings.adam import optimizer_problems
from qwen3_train.settings.lr_schedule import make_schedule

ANY_STEPS = 1000
"""Steps to try a schedule with, as only the data know their number."""


def callback_of(config: RunConfig, kind: str) -> Mapping[str, object]:
    """Return the section of the callback `kind`; empty where the YAML has none."""
    return next((item for item in config.sections("callbacks") if item.get("type") == kind), {})


def check_schedule(config: RunConfig) -> None:
    """Raise ConfigError where no run could have the schedule."""
    make_schedule(lr_section(config), ANY_STEPS)


def lr_section(config: RunConfig) -> Mapping[str, object]:
    """Return the schedule's keys; a constant rate where the YAML has no schedule."""
    if section := config.section("lr_schedule"):
        return section
    return {"type": "ConstantWarmUpLR", "learning_rate": config.get("optimizer.learning_rate", 1e-3)}


def number_problems(config: RunConfig) -> list[str]:
    """Name the numbers that are out of range."""
    problems = []
    for key in ("batch_size", "gradient_accumulation_steps", "epochs"):
        value = as_number(config.get(f"runner_config.{key}", 1))
        if value < 1:
            problems.append(f"runner_config.{key}={value} must be at least 1")
    for index, callback in enumerate(config.sections("callbacks")):
        for key in ("per_print_times", "keep_checkpoint_max", "stop_step"):
            if as_number(callback.get(key, 1)) < 1:
                problems.append(f"callbacks.{index}.{key}={callback[key]} must be at least 1")
    if not (norm := as_number(config.get("runner_wrapper.max_grad_norm", 1.0))) > 0:
        problems.append(f"runner_wrapper.max_grad_norm={norm} must be above 0")
    return problems + optimizer_problems(config.section("optimizer"))
