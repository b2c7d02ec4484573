"""The model that a run trains: the YAML's `model.model_config` over a Hugging Face folder's `config.json`."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from qwen3_model.command.narrow import build
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError
from qwen3_model.rope_scaling import read_rope

# YAML key to our field; several spellings may be used, but not for different values.
FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "num_query_groups": "num_kv_heads",
    "head_dim": "head_dim",
    "kv_channels": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "layernorm_epsilon": "rms_norm_eps",
    "initializer_range": "initializer_range",
    "init_method_std": "initializer_range",
    "rope_theta": "rope_theta",
    "rotary_base": "rope_theta",
    "tie_word_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
DEFAULTS: dict[str, object] = {
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_scaling": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def read_model(section: Mapping[str, object], hf_dir: Path | None) -> Qwen3Config:
    """Return the model's config; its dtype is float32, which is what training keeps and saves.

    Args:
        section: The keys of `model.model_config`.
        hf_dir: Folder whose `config.json` gives what the section leaves out, or None; one with
            a tokenizer and no config gives nothing.

    Raises:
        ConfigError: A size is missing, or two spellings of one key disagree.
    """
    values: dict[str, object] = {}
    if hf_dir is not None and not _is_tokenizer_only(hf_dir):
        base = Qwen3Config.from_dir(hf_dir)
        values = {field.name: getattr(base, field.name) for field in fields(base)}
    values |= {ours: value for ours, value in DEFAULTS.items() if ours not in values}
    values |= _read_stated(section)
    if section.get("rope_scaling") is not None:
        theta = values.get("rope_theta", 1.0)
        raw = {"rope_theta": theta, "rope_scaling": section["rope_scaling"]}
        values["rope_scaling"] = read_rope(
            raw | {"max_position_embeddings": values.get("max_position_embeddings")}
        )[1]
    if isinstance(ids := values["eos_token_id"], list):
        if not ids or not all(isinstance(each, int) and not isinstance(each, bool) for each in ids):
            raise ConfigError(f"model.model_config.eos_token_id={ids} must be an id or a list of ids")
        values["eos_token_id"] = tuple(ids)
    values["dtype"] = "float32"
    if missing := sorted({field.name for field in fields(Qwen3Config)} - values.keys()):
        keys = [next(key for key, ours in FIELDS.items() if ours == name) for name in missing]
        raise ConfigError(
            f"model.model_config lacks {', '.join(keys)}; state them, or give pretrained_model_dir with "
            "a config.json"
        )
    return build(Qwen3Config, values)


SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
    "tie_word_embeddings",
)  # fmt: skip
"""Fields of which the weights' shapes follow."""


def size_differences(model: Qwen3Config, folder: Path) -> str:
    """Say which sizes of `model` are not those of a config.json in `folder`; "" where all are."""
    if not (folder / "config.json").is_file():
        return ""
    in_folder = Qwen3Config.from_dir(folder)
    parts = []
    for name in SIZES:
        ours, theirs = getattr(model, name), getattr(in_folder, name)
        if ours != theirs:
            key = next(key for key, field in FIELDS.items() if field == name)
            parts.append(f"{key}={ours} where {folder / 'config.json'} has {theirs}")
    return ", ".join(parts)


def _is_tokenizer_only(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() and not (folder / "config.json").exists()


def _read_stated(section: Mapping[str, object]) -> dict[str, object]:
    stated: dict[str, object] = {}
    for key, value in section.items():
        if key not in FIELDS or value is None:
            continue
        ours = FIELDS[key]
        if ours in stated and stated[ours] != value:
            raise ConfigError(
                f"model.model_config says {key}={value!r} and {stated[ours]!r} under another name"
            )
        stated[ours] = value
    return stated
