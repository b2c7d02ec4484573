"""The defaults that come with a model: its `generation_config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_infer.sampling.sampling import SAMPLING_TYPES, Sampling
from qwen3_model.command.json_file import read_json
from qwen3_model.command.narrow import build, is_number
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError

IGNORED_KEYS = frozenset(
    {
        "_from_model_config", "bos_token_id", "cache_implementation", "max_length", "output_attentions",
        "output_hidden_states", "output_scores", "pad_token_id", "return_dict_in_generate",
        "transformers_version", "trust_remote_code", "use_cache",
    }
)  # fmt: skip
# Keys of transformers that change what is generated, at the values that change nothing.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "num_return_sequences": (1,), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "typical_p": (1, 1.0), "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0), "diversity_penalty": (0, 0.0), "length_penalty": (1, 1.0),
    "early_stopping": (False,), "min_length": (0,), "encoder_repetition_penalty": (1, 1.0),
    "renormalize_logits": (False,), "remove_invalid_values": (False,),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationConfig:
    """What a model's folder says about generating with it."""

    do_sample: bool
    """Whether tokens are drawn; otherwise the likeliest is taken."""
    sampling: Mapping[str, float]
    """Fields of `Sampling` that the file sets."""
    stop_ids: tuple[int, ...]
    """Tokens that end a completion."""
    max_new_tokens: int | None
    """Longest completion, when the file says so."""


def read_generation_config(directory: Path, config: Qwen3Config) -> GenerationConfig:
    """Read `directory/generation_config.json`; without it, greedy with config.json's end-of-text ids.

    Raises:
        ConfigError: The file is damaged, or asks for something that is not implemented.
    """
    path = directory / "generation_config.json"
    raw = read_json(path, error=ConfigError) if path.exists() else {}
    raw = {key: value for key, value in raw.items() if value is not None}
    _refuse_unimplemented(raw, path)
    do_sample = raw.get("do_sample", False)
    if not isinstance(do_sample, bool):
        raise ConfigError(f"{path}: do_sample={do_sample!r} must be true or false")
    sampling: dict[str, float] = {}
    for key in (key for key in SAMPLING_TYPES if key in raw):
        value = raw[key]
        if not is_number(value):
            raise ConfigError(f"{path}: {key}={value!r} must be a number")
        sampling[key] = value
    try:
        build(Sampling, sampling)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return GenerationConfig(
        do_sample=do_sample,
        sampling=sampling,
        stop_ids=_stop_ids(raw.get("eos_token_id", config.eos_token_id), path, config.vocab_size),
        max_new_tokens=_max_new_tokens(raw.get("max_new_tokens"), path),
    )


def _refuse_unimplemented(raw: Mapping[str, object], path: Path) -> None:
    known = {"do_sample", "eos_token_id", "max_new_tokens", *SAMPLING_TYPES, *IGNORED_KEYS}
    problems = [
        f"{key}={value!r}"
        for key, value in raw.items()
        if key not in known and not (key in NEUTRAL and value in NEUTRAL[key])
    ]
    if problems:
        raise ConfigError(f"{path} asks for what is not implemented: {', '.join(problems)}; remove it there")


def _stop_ids(value: object, path: Path, vocab_size: int) -> tuple[int, ...]:
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    for number in ids:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < vocab_size:
            raise ConfigError(
                f"{path}: eos_token_id={number!r} is no token of a vocabulary of {vocab_size} rows"
            )
    return tuple(ids)


def _max_new_tokens(value: object, path: Path) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigError(f"{path}: max_new_tokens={value!r} must be a whole number of at least 1")
    return value
