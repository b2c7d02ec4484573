"""The YAML and the dotted arguments of a run, for this process and for its workers."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qwen3_model.command.run_config import RunConfig, Schema, load_run_config, parse_dotted
from qwen3_model.command.small_files import YAML_BYTES, read_small_text
from qwen3_model.command.yaml_loader import parse_yaml
from qwen3_model.errors import ConfigError, UsageError
from qwen3_train.prepare.prepare import PreparedRun
from qwen3_train.settings.schema import FLAG_ALIASES, TRAIN
from qwen3_train.settings.unused import with_winning_overrides


def read_config(config_path: Path, arguments: Sequence[str], schema: Schema = TRAIN) -> RunConfig:
    """Return the YAML with the dotted arguments put in; what these say wins over another spelling of it.

    Raises:
        UsageError, ConfigError: A key is unknown or a value cannot be meant.
    """
    overrides = read_overrides(arguments)
    if _run_mode(config_path, overrides) == "predict":
        raise UsageError(
            "run_mode='predict' is not for this command; use qwen3-infer generate or qwen3-infer plan with "
            f"--config {config_path}"
        )
    return load_run_config(config_path, overrides, schema)


def read_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return the dotted arguments as keys and values, with what they switch off in the YAML.

    Raises:
        UsageError: An argument cannot be meant, or two say the same thing.
    """
    pairs = [(FLAG_ALIASES.get(key, key), value) for key, value in parse_dotted(arguments)]
    return with_winning_overrides(pairs)


def _run_mode(config_path: Path, overrides: Sequence[tuple[str, str]]) -> Any:
    """Return the run's mode before its keys are checked, which in a YAML for prediction are others."""
    stated = dict(overrides).get("run_mode")
    if stated is None and config_path.is_file():
        with suppress(ConfigError, UnicodeDecodeError):
            values = parse_yaml(read_small_text(config_path, YAML_BYTES), str(config_path))
            stated = values.get("run_mode") if isinstance(values, dict) else None
    return stated


def pinned(run: PreparedRun) -> list[str]:
    """Name the checkpoint that was chosen, so that all workers take the same."""
    source = run.source
    if source is None:
        return ["--resume_training", "False", "--ignore_data_skip", "False", "--data_skip_steps", "0"]
    if source.merged is not None:
        return ["--resume_training", "True", "--load_checkpoint", str(source.merged)]
    return ["--resume_training", str(source.first.absolute())]
