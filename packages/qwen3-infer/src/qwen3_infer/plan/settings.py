"""What decides the memory of a generation, read from YAML and flags without a device or weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_infer.settings.schema import FLAG_KEYS
from qwen3_infer.settings.settings import DEFAULT_NEW_TOKENS, MODEL_PARALLEL, read_run_config
from qwen3_infer.steps.pieces import DEVICE_PIECES, batch_size, round_up
from qwen3_model.checkpoints.describe import find_config
from qwen3_model.command.narrow import as_int, optional
from qwen3_model.config import Qwen3Config
from qwen3_model.device.ascend import has_float32_residual
from qwen3_model.device.memory import read_memory_limit
from qwen3_model.errors import ConfigError, UsageError
from qwen3_model.ranks.layout_checks import split_problems

BLOCK_TOKENS = DEVICE_PIECES[-1]
"""Tokens of a block of the cache, which are also those of the shortest piece of a prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSettings:
    """What the planner needs to know about a generation."""

    model: Qwen3Config
    tp: int
    """Devices that share the model out."""
    num_requests: int
    """Most that run at once."""
    request_tokens: int
    """Tokens of the longest request, prompt and completion together."""
    cache_tokens: int
    """Room for all that run at once."""
    residual_bytes: int
    """Bytes of an element of what the layers add to."""
    memory_bytes: int | None
    """Limit of a device, or None for no limit."""

    @property
    def num_rows(self) -> int:
        """Rows that a step of decoding computes."""
        return batch_size(self.num_requests)

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache; one more is where rows without a request write."""
        return self.cache_tokens // BLOCK_TOKENS + 1

    @property
    def request_blocks(self) -> int:
        """Blocks of the longest request."""
        return round_up(self.request_tokens, BLOCK_TOKENS) // BLOCK_TOKENS


def read_plan_settings(
    config_path: Path | None,
    flags: Mapping[str, object],
    overrides: tuple[str, ...],
    *,
    worker_num: int | None,
    prompt_tokens: int,
    max_memory: int | None,
) -> PlanSettings:
    """Join the YAML, dotted overrides and flags; a flag that is None was not given.

    Args:
        config_path: The YAML, or None.
        flags: By their names in Python.
        overrides: `--section.key value`.
        worker_num: Devices that share the model out; None for what the YAML says.
        prompt_tokens: Tokens of the longest prompt.
        max_memory: Bytes of a device; None for what the YAML says.

    Raises:
        UsageError: A flag cannot be meant, or no model is named.
        ConfigError: The YAML or the config cannot be read, or the model does not divide.
    """
    run = read_run_config(config_path, overrides)
    given = {FLAG_KEYS[name]: value for name, value in flags.items() if value is not None}

    def value_of(key: str, default: object) -> object:
        return given.get(key, run.get(key, default))

    source = value_of("pretrained_model_dir", "")
    if not source:
        raise UsageError("name the model as --pretrained-model-dir DIR, or a size as 32B")
    model = find_config(str(source))
    tp = worker_num or (1 if run.get("use_parallel") is False else as_int(run.get(MODEL_PARALLEL, 1)))
    if problems := split_problems(model, tp):
        raise ConfigError("; ".join(problems))
    num_requests = as_int(value_of("predict_batch_size", 1))
    if num_requests < 1:
        raise UsageError(f"--predict-batch-size {num_requests} must be at least 1")
    request_tokens = prompt_tokens + as_int(value_of("generation.max_new_tokens", DEFAULT_NEW_TOKENS))
    if request_tokens > model.max_position_embeddings:
        raise UsageError(
            f"{request_tokens} tokens of a prompt and its completion are more than the model's context of "
            f"{model.max_position_embeddings}; lower --prompt-tokens or --max-new-tokens"
        )
    room = round_up(request_tokens, BLOCK_TOKENS)
    cache_tokens = optional(as_int, value_of("max_tokens_in_cache", None))
    return PlanSettings(
        model=model,
        tp=tp,
        num_requests=num_requests,
        request_tokens=request_tokens,
        cache_tokens=max(room, round_up(cache_tokens, BLOCK_TOKENS) if cache_tokens else num_requests * room),
        residual_bytes=4 if has_float32_residual(run) else 2,
        memory_bytes=read_memory_limit(run, max_memory),
    )
