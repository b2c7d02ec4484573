"""The callback OnRequestExit: a JSON file by which a person asks a run to save and end."""

import json
from pathlib import Path

from qwen3_model.command.narrow import as_text, optional
from qwen3_model.command.run_config import RunConfig
from qwen3_model.errors import ConfigError
from qwen3_train.settings.values import callback_of

KEY = "GracefulExit"


def read_exit_file(config: RunConfig) -> Path | None:
    """Return `config_file` of the callback; None where nothing names one, or no request is heeded."""
    path = optional(as_text, callback_of(config, "OnRequestExit").get("config_file"))
    return Path(path) if path and config.get("use_graceful_exit", True) else None


def asks_to_exit(path: Path) -> bool:
    """Return whether the file has GracefulExit of 1; one that is missing or half written asks for nothing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get(KEY) in (1, "1")


def refuse_exit_request(path: Path | None) -> None:
    """Raise ConfigError where the file asks to end a run that is about to start."""
    if path is not None and asks_to_exit(path):
        raise ConfigError(f"{path} says {KEY}: 1, which ends a run; set it to 0 and start again")
