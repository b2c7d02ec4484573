"""mindformers' fused weights: their names, shapes, and how rows of q, k, v, gate and up lie in them.

Attention: for each key/value group, its query heads' rows, then its key rows, then its value rows
("grouped"), or all of q, then k, then v ("contiguous"). Feed-forward: rows of gate and up in turn
("interleaved"), or all of gate, then up ("contiguous"). Shapes cannot tell one from the other; mindformers'
training default is grouped and interleaved (`use_contiguous_weight_layout_attention: False`,
`use_interleaved_weight_layout_mlp: True`).
"""

import re
from dataclasses import dataclass

from qwen3_ckpt.rows import InterleavedRows, LazyTensor, PickedRows, RowSource, Run, StackedRows
from qwen3_model.config import Qwen3Config
from qwen3_model.safetensors_file import TensorPlan

TO_FUSED_TOP = {
    "model.embed_tokens.weight": "embedding.word_embeddings.weight",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head.weight": "output_layer.weight",
}
TO_FUSED_LAYER = {
    "input_layernorm": "input_layernorm",
    "self_attn.o_proj": "self_attention.linear_proj",
    "self_attn.q_norm": "self_attention.q_layernorm",
    "self_attn.k_norm": "self_attention.k_layernorm",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "mlp.down_proj": "mlp.linear_fc2",
}
A_HALF, B_HALF = ".lora_A", ".lora_B"
QKV, FC1 = "self_attention.linear_qkv", "mlp.linear_fc1"
FUSED_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True, slots=True)
class FusedLayout:
    """Which of the row orders a checkpoint has."""

    contiguous_qkv: bool = False
    """q, k, v one below the other instead of grouped."""
    interleaved_mlp: bool = True
    """gate and up row by row instead of one below the other."""


def fused_shapes(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    """Return mindformers' names and shapes for the model, in its order."""
    shapes = config.weight_shapes()
    hidden, group = config.hidden_size, (config.num_heads // config.num_kv_heads + 2) * config.head_dim
    fused = {}
    for name, shape in shapes.items():
        if name in TO_FUSED_TOP:
            fused[TO_FUSED_TOP[name]] = shape
    for layer in range(config.num_layers):
        for ours, theirs in TO_FUSED_LAYER.items():
            fused[f"decoder.layers.{layer}.{theirs}.weight"] = shapes[f"model.layers.{layer}.{ours}.weight"]
        fused[f"decoder.layers.{layer}.{QKV}.weight"] = (group * config.num_kv_heads, hidden)
        fused[f"decoder.layers.{layer}.{FC1}.weight"] = (2 * config.intermediate_size, hidden)
    return fused


def split_fused(
    tensors: dict[str, LazyTensor], config: Qwen3Config, layout: FusedLayout
) -> dict[str, LazyTensor]:
    """Return Hugging Face's tensors out of mindformers'; names that are not the model's are kept."""
    top = {theirs: ours for ours, theirs in TO_FUSED_TOP.items()}
    in_layer = {theirs: ours for ours, theirs in TO_FUSED_LAYER.items()}
    result = {}
    for name, tensor in tensors.items():
        match = FUSED_LAYER.fullmatch(name)
        prefix = f"model.layers.{match[1]}" if match else ""
        if name in top:
            result[top[name]] = tensor.renamed(top[name])
        elif match and match[2] in in_layer:
            new = f"{prefix}.{in_layer[match[2]]}.weight"
            result[new] = tensor.renamed(new)
        elif match and match[2] == QKV:
            for part, runs in qkv_runs(config, layout).items():
                new = f"{prefix}.self_attn.{part}_proj.weight"
                result[new] = _picked(tensor, new, runs)
        elif match and match[2] == FC1:
            for part, run in mlp_runs(config, layout).items():
                new = f"{prefix}.mlp.{part}_proj.weight"
                result[new] = _picked(tensor, new, [run])
        else:
            result[name] = tensor
    return result


def split_fused_adapters(
    tensors: dict[str, LazyTensor], config: Qwen3Config, layout: FusedLayout
) -> dict[str, LazyTensor]:
    """Return adapters of ours out of mindformers' fused ones: A is shared, B's rows are split."""
    halves = {
        half: {n.replace(half, ""): t for n, t in tensors.items() if half in n} for half in (A_HALF, B_HALF)
    }
    result = {}
    for name, tensor in split_fused(halves[B_HALF], config, layout).items():
        new = name.removesuffix(".weight") + f"{B_HALF}.weight"
        result[new] = tensor.renamed(new)
    for name, tensor in halves[A_HALF].items():
        for part in split_name(name):
            new = part.removesuffix(".weight") + f"{A_HALF}.weight"
            result[new] = tensor.renamed(new)
    return result


def split_name(fused_name: str) -> list[str]:
    """Return the names of ours that a name of mindformers' covers; an unknown name covers itself."""
    for ours, theirs in TO_FUSED_TOP.items():
        if fused_name == theirs:
            return [ours]
    match = FUSED_LAYER.fullmatch(fused_name)
    if not match:
        return [fused_name]
    leaves = [ours for ours, theirs in TO_FUSED_LAYER.items() if theirs == match[2]]
    if match[2] == QKV:
        leaves = [f"self_attn.{part}_proj" for part in "qkv"]
    elif match[2] == FC1:
        leaves = ["mlp.gate_proj", "mlp.up_proj"]
    return [f"model.layers.{match[1]}.{leaf}.weight" for leaf in leaves] or [fused_name]


def fuse(tensors: dict[str, LazyTensor], config: Qwen3Config, layout: FusedLayout) -> dict[str, LazyTensor]:
    """Return mindformers' tensors out of Hugging Face's, which must be complete."""
    result = {
        theirs: tensors[ours].renamed(theirs) for ours, theirs in TO_FUSED_TOP.items() if ours in tensors
    }
    for layer in range(config.num_layers):
        old, new = f"model.layers.{layer}", f"decoder.layers.{layer}"
        for ours, theirs in TO_FUSED_LAYER.items():
            name = f"{new}.{theirs}.weight"
            result[name] = tensors[f"{old}.{ours}.weight"].renamed(name)
        q, k, v = (tensors[f"{old}.self_attn.{part}_proj.weight"] for part in "qkv")
        gate, up = (tensors[f"{old}.mlp.{part}_proj.weight"] for part in ("gate", "up"))
        name = f"{new}.{QKV}.weight"
        result[name] = _joined(name, [q, k, v], _fused_qkv_rows(config, layout, q, k, v))
        name = f"{new}.{FC1}.weight"
        weave = InterleavedRows if layout.interleaved_mlp else StackedRows
        result[name] = _joined(name, [gate, up], weave([gate.rows, up.rows]))
    return result


def qkv_runs(config: Qwen3Config, layout: FusedLayout) -> dict[str, list[Run]]:
    """Return, for q, k and v, their rows in the fused weight, in order."""
    head, kv = config.head_dim, config.num_kv_heads
    q_rows = config.num_heads // kv * head  # of one group
    if layout.contiguous_qkv:
        q, k = q_rows * kv, head * kv
        return {"q": [Run(0, q)], "k": [Run(q, q + k)], "v": [Run(q + k, q + 2 * k)]}
    group = q_rows + 2 * head
    starts = range(0, group * kv, group)
    return {
        "q": [Run(start, start + q_rows) for start in starts],
        "k": [Run(start + q_rows, start + q_rows + head) for start in starts],
        "v": [Run(start + q_rows + head, start + group) for start in starts],
    }


def mlp_runs(config: Qwen3Config, layout: FusedLayout) -> dict[str, Run]:
    """Return the rows of gate and up in the fused weight."""
    width = config.intermediate_size
    if layout.interleaved_mlp:
        return {"gate": Run(0, 2 * width, 2), "up": Run(1, 2 * width, 2)}
    return {"gate": Run(0, width), "up": Run(width, 2 * width)}


def _fused_qkv_rows(
    config: Qwen3Config, layout: FusedLayout, q: LazyTensor, k: LazyTensor, v: LazyTensor
) -> RowSource:
    if layout.contiguous_qkv:
        return StackedRows([q.rows, k.rows, v.rows])
    head, per_group = config.head_dim, config.num_heads // config.num_kv_heads * config.head_dim
    bands: list[RowSource] = []
    for group in range(config.num_kv_heads):
        bands.append(PickedRows(q.rows, [Run(group * per_group, (group + 1) * per_group)]))
        bands += [PickedRows(part.rows, [Run(group * head, (group + 1) * head)]) for part in (k, v)]
    return StackedRows(bands)


def _picked(tensor: LazyTensor, name: str, runs: list[Run]) -> LazyTensor:
    rows = PickedRows(tensor.rows, runs)
    return LazyTensor(TensorPlan(name, tensor.plan.dtype, (rows.num_rows, *tensor.plan.shape[1:])), rows)


def _joined(name: str, parts: list[LazyTensor], rows: RowSource) -> LazyTensor:
    first = parts[0].plan
    return LazyTensor(TensorPlan(name, first.dtype, (rows.num_rows, *first.shape[1:])), rows)
