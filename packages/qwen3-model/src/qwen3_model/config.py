"""The architecture of a dense Qwen3 model, from and to Hugging Face's `config.json`.

Both spellings are read: the older (`torch_dtype`, `rope_theta`, `rope_scaling`) and that of transformers 5
(`dtype`, `rope_parameters`, `layer_types`). The older is written, since every version of
transformers reads it.
"""

import difflib
import functools
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_model.command.json_file import read_json
from qwen3_model.command.narrow import build, is_above_zero
from qwen3_model.command.plain_text import without_controls
from qwen3_model.errors import ConfigError
from qwen3_model.rope_scaling import YarnScaling, read_rope

# config.json key to our field.
MAPPED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
# Keys whose every other value would change the mathematics into something not implemented here.
MUST_EQUAL: dict[str, tuple[object, ...]] = {
    "model_type": ("qwen3",),
    "architectures": (["Qwen3ForCausalLM"], None),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "use_sliding_window": (False,),
    "use_mrope": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}
# Read elsewhere in this file.
SPELLED_TWICE = {"torch_dtype", "dtype", "rope_theta", "rope_scaling", "rope_parameters", "layer_types"}
# Without meaning for the mathematics while the keys above hold.
IGNORED = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "max_window_layers",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "sliding_window",
    "task_specific_params",
    "transformers_version",
    "use_cache",
}
# Notes of tools that saved the folder; they say nothing about the model, and one line names them.
IGNORED_PREFIXES = ("unsloth_",)
MAX_LAYERS = 10_000
"""No model has more; a list of weights is made for each."""
OPTIONAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "initializer_range": 0.02}
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Qwen3Config:
    """Sizes and constants of a dense Qwen3 model."""

    vocab_size: int
    """Rows of the embedding, which may exceed the tokenizer's tokens."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width of the feed-forward layer."""
    num_layers: int
    """Decoder layers."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; must divide num_heads."""
    head_dim: int
    """Width of a head, even. Qwen3 states it; it is not hidden_size / num_heads."""
    max_position_embeddings: int
    """Longest context in tokens that the weights were made for."""
    rope_theta: float
    """Base of the rotary frequencies."""
    rope_scaling: YarnScaling | None
    """YaRN's stretch of the rotary frequencies, or None."""
    rms_norm_eps: float
    """Added to the mean square in every RMSNorm."""
    tie_word_embeddings: bool
    """Whether the output head is the embedding."""
    initializer_range: float
    """Standard deviation of fresh weights."""
    bos_token_id: int | None
    """Beginning-of-sequence id; Qwen3 does not prepend it."""
    eos_token_id: int | tuple[int, ...] | None
    """Ids that end a text."""
    pad_token_id: int | None
    """Id that fills short rows, or None."""
    dtype: str
    """Element type of the released weights: bfloat16, float16 or float32."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
            "head_dim", "max_position_embeddings",
        ):  # fmt: skip
            value = getattr(self, name)
            most = MAX_LAYERS if name == "num_layers" else 1 << 62
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
                raise ConfigError(f"{name}={value!r} must be a whole number from 1 to {most}")
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not is_above_zero(value):
                raise ConfigError(f"{name}={reprlib.repr(value)} must be a number above 0")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            _check_ids(name, getattr(self, name))
        if not isinstance(self.tie_word_embeddings, bool):
            raise ConfigError(f"tie_word_embeddings={self.tie_word_embeddings!r} must be true or false")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: rotary embedding turns pairs")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} is none of {', '.join(DTYPES)}")

    @classmethod
    def from_hf(cls, raw: Mapping[str, object]) -> "Qwen3Config":
        """Read the contents of a `config.json`.

        Raises:
            ConfigError: A key is missing, unknown, or has a value that this version does not implement.
        """
        known = MAPPED.keys() | MUST_EQUAL.keys() | SPELLED_TWICE | IGNORED
        if unknown := sorted(key for key in raw.keys() - known if not key.startswith(IGNORED_PREFIXES)):
            hints = [_hint(key, known) for key in unknown]
            raise ConfigError(
                f"config.json has keys that this version does not implement: {', '.join(hints)}"
            )
        for key, allowed in MUST_EQUAL.items():
            if key in raw and raw[key] not in allowed:
                raise ConfigError(f"config.json: {key}={raw[key]!r} is not implemented, only {allowed[0]!r}")
        kinds = raw.get("layer_types") or ()
        if not isinstance(kinds, list | tuple):
            raise ConfigError(f"config.json: layer_types={kinds!r} must list the kind of each layer")
        if any(kind != "full_attention" for kind in kinds):
            raise ConfigError(
                "config.json: layer_types has other kinds than 'full_attention', which only is implemented"
            )
        if missing := sorted(MAPPED.keys() - raw.keys() - OPTIONAL.keys()):
            raise ConfigError(f"config.json lacks {', '.join(missing)}")
        theta, scaling = read_rope(raw)
        values: dict[str, object] = {
            ours: raw.get(theirs, OPTIONAL.get(theirs)) for theirs, ours in MAPPED.items()
        }
        if isinstance(ids := values["eos_token_id"], list):
            values["eos_token_id"] = tuple(ids)
        values["dtype"] = raw.get("dtype") or raw.get("torch_dtype") or "float32"
        return build(cls, {**values, "rope_theta": theta, "rope_scaling": scaling})

    @classmethod
    def from_dir(cls, directory: Path) -> "Qwen3Config":
        """Read `directory/config.json`.

        Raises:
            ConfigError: The file is missing, is not JSON, or does not describe a model of this kind.
        """
        try:
            return cls.from_file(directory / "config.json")
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{directory} has no config.json; give a Hugging Face model folder") from None

    @classmethod
    def from_file(cls, path: Path) -> "Qwen3Config":
        """Read the `config.json` at `path`.

        Raises:
            ConfigError: The file is not JSON, or does not describe a model of this kind.
            OSError: The file cannot be read.
        """
        raw = read_json(path, error=ConfigError)
        try:
            config = cls.from_hf(raw)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        _note_others_keys(str(path), tuple(sorted(key for key in raw if key.startswith(IGNORED_PREFIXES))))
        return config

    def to_hf(self) -> dict[str, object]:
        """Return the contents of a `config.json` that transformers reads as the same model."""
        raw: dict[str, object] = {theirs: getattr(self, ours) for theirs, ours in MAPPED.items()}
        if isinstance(self.eos_token_id, tuple):
            raw["eos_token_id"] = list(self.eos_token_id)
        if self.pad_token_id is None:
            del raw["pad_token_id"]
        raw |= {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "max_window_layers": self.num_layers,
            "model_type": "qwen3",
            "rope_scaling": self.rope_scaling.to_hf() if self.rope_scaling else None,
            "rope_theta": self.rope_theta,
            "sliding_window": None,
            "torch_dtype": self.dtype,
            "use_cache": True,
            "use_sliding_window": False,
        }
        return dict(sorted(raw.items()))

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every weight's Hugging Face name and shape, in the model's order; no `lm_head` when tied."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab_size, self.hidden_size)
        }
        for layer in range(self.num_layers):
            shapes |= self.layer_weight_shapes(layer)
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def layer_weight_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of one decoder layer's weights."""
        hidden, q_width, kv_width = (
            self.hidden_size,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (q_width, hidden),
            "self_attn.k_proj": (kv_width, hidden),
            "self_attn.v_proj": (kv_width, hidden),
            "self_attn.o_proj": (hidden, q_width),
            "self_attn.q_norm": (self.head_dim,),
            "self_attn.k_norm": (self.head_dim,),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (self.intermediate_size, hidden),
            "mlp.up_proj": (self.intermediate_size, hidden),
            "mlp.down_proj": (hidden, self.intermediate_size),
        }
        return {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}

    def num_parameters(self) -> int:
        """Return the number of weights, a tied head counted once."""
        return sum(math.prod(shape) for shape in self.weight_shapes().values())


def _check_ids(name: str, value: object) -> None:
    ids = value if isinstance(value, tuple) else () if value is None else (value,)
    if any(type(number) is not int for number in ids):
        raise ConfigError(f"{name}={value!r} must be a token id, or null")


@functools.cache
def _note_others_keys(path: str, keys: tuple[str, ...]) -> None:
    """Say once in a process that keys of other tools are not used."""
    if keys:
        import logging  # late: `--help` needs none

        message = "Note: %s has keys of the tool that saved it, which are not used: %s"
        logging.getLogger(__name__).warning(message, *map(without_controls, (path, ", ".join(keys))))


def _hint(key: str, known: set[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"{key} (did you mean {close[0]}?)" if close else key


def _make_released(hidden: int, layers: int, heads: int, intermediate: int, *, tied: bool) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rope_theta=1_000_000.0,
        rope_scaling=None,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        initializer_range=0.02,
        bos_token_id=151643,
        eos_token_id=151645,
        pad_token_id=None,
        dtype="bfloat16",
    )


SIZES = {
    "0.6B": _make_released(1024, 28, 16, 3072, tied=True),
    "1.7B": _make_released(2048, 28, 16, 6144, tied=True),
    "4B": _make_released(2560, 36, 32, 9728, tied=True),
    "8B": _make_released(4096, 36, 32, 12288, tied=False),
    "14B": _make_released(5120, 40, 40, 17408, tied=False),
    "32B": _make_released(5120, 64, 64, 25600, tied=False),
}
"""The released dense sizes, as in each one's `config.json`."""


def find_size(text: str) -> str | None:
    """Return the released size that a text names, a key of SIZES; None for another text.

    A size is written 0.6B, 0.6b, Qwen3-0.6B, qwen3_0_6b, or Qwen/Qwen3-0.6B.
    """
    name = text.strip().lower().removeprefix("qwen/")
    name = name.removeprefix("qwen3").lstrip("-_").replace("_", ".").upper()
    return name if name in SIZES else None
