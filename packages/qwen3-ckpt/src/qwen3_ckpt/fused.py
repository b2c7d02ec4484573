"""mindformers' fused weights out of the model's own and back; `qwen3_model.fused` says how rows lie there."""

from qwen3_ckpt.rows import InterleavedRows, LazyTensor, PickedRows, RowSource, StackedRows
from qwen3_model.config import Qwen3Config
from qwen3_model.fused import (
    FC1,
    FUSED_LAYER,
    QKV,
    TO_FUSED_LAYER,
    TO_FUSED_TOP,
    FusedLayout,
    Run,
    mlp_runs,
    qkv_runs,
    split_name,
)
from qwen3_model.safetensors_file import TensorPlan

A_HALF, B_HALF = ".lora_A", ".lora_B"


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
