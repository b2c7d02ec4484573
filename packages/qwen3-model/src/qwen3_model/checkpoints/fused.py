"""mindformers' fused weights: their names, shapes, and how rows of q, k, v, gate and up lie in them.

Attention: for each key/value group, its query heads' rows, then its key rows, then its value rows
("grouped"), or all of q, then k, then v ("contiguous"). Feed-forward: rows of gate and up in turn
("interleaved"), or all of gate, then up ("contiguous"). Shapes cannot tell one from the other; mindformers'
training default is grouped and interleaved (`use_contiguous_weight_layout_attention: False`,
`use_interleaved_weight_layout_mlp: True`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qwen3_model.checkpoints.rows import LazyTensor, PickedRows, Run
from qwen3_model.checkpoints.safetensors_file import TensorPlan
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.command.narrow import as_flag
from qwen3_model.command.run_config import RunConfig
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import WeightError

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
QKV, FC1 = "self_attention.linear_qkv", "mlp.linear_fc1"
FUSED_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)\.weight")
MOMENTS = ("adam_m.", "adam_v.")
"""Beginnings of the names of the optimizer's moments; the weight's name follows."""
ADAPTER_HALF = re.compile(r"(.+)\.(?:mindpet_delta_)?lora_([abAB])(?:\.weight)?")
"""mindformers' names of adapters: of its graph mode, of mindpet, and of its pynative mode."""


@dataclass(frozen=True, slots=True)
class FusedLayout:
    """Which of the row orders a checkpoint has."""

    contiguous_qkv: bool = False
    """q, k, v one below the other instead of grouped."""
    interleaved_mlp: bool = True
    """gate and up row by row instead of one below the other."""


def read_fused_layout(config: RunConfig) -> FusedLayout:
    """Return what a YAML says of mindformers' checkpoint, by the newer or the older name of a key."""
    section = "model.model_config"
    older = config.get(f"{section}.use_contiguous_weight_layout", False)
    return FusedLayout(
        contiguous_qkv=as_flag(config.get(f"{section}.use_contiguous_weight_layout_attention", older)),
        interleaved_mlp=as_flag(config.get(f"{section}.use_interleaved_weight_layout_mlp", True)),
    )


def unfused(tensors: Tensors, config: Qwen3Config, layout: FusedLayout) -> Tensors:
    """Return the tensors under the model's own names, if mindformers named them; else as they are."""
    if not is_fused(tensors.lazy):
        return tensors
    return Tensors(tensors.first, split_fused(tensors.lazy, config, layout))


def is_fused(names: Iterable[str]) -> bool:
    """Return whether the names are mindformers', of weights, adapters or moments."""
    return any(FUSED_LAYER.fullmatch(_weight_name(name)[1]) for name in names)


def split_fused(
    tensors: Mapping[str, LazyTensor], config: Qwen3Config, layout: FusedLayout
) -> dict[str, LazyTensor]:
    """Return the model's own tensors out of mindformers': weights, adapters and moments of both.

    Of an adapter on a fused weight the parts share A, and B's rows are split. Unknown names are kept.

    Raises:
        WeightError: A fused tensor has other rows than the config makes.
    """
    runs: dict[str, list[Run]] = row_runs(config, layout)
    result: dict[str, LazyTensor] = {}
    for theirs, tensor in tensors.items():
        moment, weight, half = _weight_name(theirs)
        ours = split_name(weight)
        for name in ours:
            new = moment + (f"{name.removesuffix('.weight')}.lora_{half}.weight" if half else name)
            is_part = len(ours) > 1 and half != "A"
            result[new] = (_pick_rows(tensor, runs, name) if is_part else tensor).renamed(new)
    return result


def weight_of(name: str) -> str:
    """Return the weight that a moment belongs to; any other name as it is."""
    return next((name.removeprefix(moment) for moment in MOMENTS if name.startswith(moment)), name)


def _weight_name(name: str) -> tuple[str, str, str]:
    """Take a name apart: the moment's prefix, the weight, and the half of an adapter, A, B or none."""
    moment = next((prefix for prefix in MOMENTS if name.startswith(prefix)), "")
    bare = name.removeprefix(moment)
    match = ADAPTER_HALF.fullmatch(bare)
    return (moment, f"{match[1]}.weight", match[2].upper()) if match else (moment, bare, "")


def _pick_rows(tensor: LazyTensor, runs: Mapping[str, list[Run]], name: str) -> LazyTensor:
    part = name.split(".")[-2].removesuffix("_proj")
    group = "qkv" if part in "qkv" else ("gate", "up")
    needed = sum(len(run) for each in group for run in runs[each])
    plan = tensor.plan
    if not plan.shape or plan.shape[0] != needed:
        raise WeightError(f"{plan.name} is {plan.shape}, config.json makes {needed} rows of it")
    rows = PickedRows(tensor.rows, runs[part])
    return LazyTensor(TensorPlan(name, plan.dtype, (rows.num_rows, *plan.shape[1:])), rows)


def row_runs(config: Qwen3Config, layout: FusedLayout) -> dict[str, list[Run]]:
    """Return, for q, k, v, gate and up, their rows in their fused weight, in order."""
    return qkv_runs(config, layout) | {part: [run] for part, run in mlp_runs(config, layout).items()}


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
