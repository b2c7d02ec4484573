"""What the compiled functions take: the structures of layer.h and model.h, field by field."""

from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p

MATRICES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
"""Modules of a layer in the order of layer.h."""
NORMS = ("input_layernorm", "self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm")


SIZES = (
    "num_layers", "hidden", "inner", "num_heads", "num_kv_heads", "width", "vocabulary", "cache_tokens",
)  # fmt: skip


class AdapterFields(Structure):
    """A LoRA adapter; none where the rank is 0."""

    _fields_ = [("a", c_void_p), ("b", c_void_p), ("rank", c_int64), ("scale", c_float)]


class LayerFields(Structure):
    """A layer's weights and cache."""

    _fields_ = [
        ("norms", c_void_p * len(NORMS)),
        ("matrices", c_void_p * len(MATRICES)),
        ("adapters", AdapterFields * len(MATRICES)),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class ModelFields(Structure):
    """Sizes, and the weights that are no layer's."""

    _fields_ = [
        *((name, c_int64) for name in SIZES),
        ("eps", c_float),
        ("turn_scale", c_float),
        ("is_bfloat16", c_int32),
        ("rounds_inputs", c_int32),
        ("embedding", c_void_p),
        ("head", c_void_p),
        ("norm", c_void_p),
        ("frequencies", c_void_p),
        ("embedding_adapter", AdapterFields),
        ("head_adapter", AdapterFields),
        ("layers", POINTER(LayerFields)),
    ]  # fmt: skip


class TokenFields(Structure):
    """Tokens of some regions of the cache."""

    _fields_ = [
        ("batch", c_int64),
        ("length", c_int64),
        ("ids", c_void_p),
        ("positions", c_void_p),
        ("starts", c_void_p),
    ]
