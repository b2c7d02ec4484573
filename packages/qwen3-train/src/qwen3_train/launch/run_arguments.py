"""The YAML and the dotted arguments of a run, for this process and for its workers."""

from collections.abc import Sequence
from pathlib import Path

from qwen3_model.command.keys import Schema, parse_dotted
from qwen3_model.command.run_config import RunConfig, load_run_config, peek_values
from qwen3_model.errors import UsageError
from qwen3_train.prepare.prepare import PreparedRun
from qwen3_train.settings.schema import FLAG_ALIASES, TRAIN
from qwen3_train.settings.unused import with_winning_overrides

EXAMPLE = "configs/qwen3/demo.yaml"
"""A YAML of the checkout that one process runs."""


def read_config(config_path: Path, arguments: Sequence[str], schema: Schema = TRAIN) -> RunConfig:
    """Return the YAML with the dotted arguments put in; what these say wins over another spelling of it.

    Raises:
        UsageError, ConfigError: A key is unknown or a value cannot be meant.
    """
    overrides = read_overrides(arguments)
    refuse_other_files(config_path, overrides)
    return load_run_config(config_path, overrides, schema)


def read_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return the dotted arguments as keys and values, with what they switch off in the YAML.

    Raises:
        UsageError: An argument cannot be meant, or two say the same thing.
    """
    return with_winning_overrides(parse_dotted(arguments, TRAIN, FLAG_ALIASES))


def refuse_other_files(config_path: Path, overrides: Sequence[tuple[str, str]]) -> None:
    """Refuse a YAML that is empty or for another command, before each of its keys is called unknown.

    Raises:
        UsageError, ConfigError: It is one; the sentence names the command or the file that is meant.
    """
    values = peek_values(config_path)
    if values is None:
        raise UsageError(f"{config_path} is empty; begin with a copy of {EXAMPLE}")
    values = values if isinstance(values, dict) else {}
    if dict(overrides).get("run_mode", values.get("run_mode")) == "predict":
        raise UsageError(
            "run_mode='predict' is not for this command; use qwen3-infer generate or qwen3-infer plan with "
            f"--config {config_path}"
        )
    if "hidden_size" in values and "model" not in values:
        raise UsageError(
            f"{config_path} is a model's config.json; give the YAML of a run as --config, such as {EXAMPLE}, "
            f"and --pretrained_model_dir {config_path.parent}"
        )


def pinned(run: PreparedRun) -> list[str]:
    """Name the checkpoint that was chosen, so that all workers take the same."""
    source = run.source
    if source is None:
        return ["--resume_training", "False", "--ignore_data_skip", "False", "--data_skip_steps", "0"]
    if source.merged is not None:
        return ["--resume_training", "True", "--load_checkpoint", str(source.merged)]
    return ["--resume_training", str(source.first.absolute())]
