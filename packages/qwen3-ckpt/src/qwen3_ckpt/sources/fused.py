"""mindformers' fused weights out of the model's own.

`qwen3_model.checkpoints.fused` reads them and says how their rows lie.
"""

from qwen3_model.checkpoints.fused import FC1, QKV, TO_FUSED_LAYER, TO_FUSED_TOP, FusedLayout
from qwen3_model.checkpoints.rows import InterleavedRows, LazyTensor, PickedRows, RowSource, Run, StackedRows
from qwen3_model.checkpoints.safetensors_file import TensorPlan
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import WeightError


def fuse(tensors: dict[str, LazyTensor], config: Qwen3Config, layout: FusedLayout) -> dict[str, LazyTensor]:
    """Return mindformers' tensors out of Hugging Face's, which must be complete.

    Raises:
        WeightError: Weights that become one have different types.
    """
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
        result[name] = _join_rows(name, [q, k, v], _fused_qkv_rows(config, layout, q, k, v))
        name = f"{new}.{FC1}.weight"
        weave = InterleavedRows if layout.interleaved_mlp else StackedRows
        result[name] = _join_rows(name, [gate, up], weave([gate.rows, up.rows]))
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


def _join_rows(name: str, parts: list[LazyTensor], rows: RowSource) -> LazyTensor:
    first = parts[0].plan
    if other := next((part.plan for part in parts if part.plan.dtype != first.dtype), None):
        raise WeightError(
            f"{first.name} is {first.dtype}, {other.name} {other.dtype}, but {name} is one tensor of both; "
            "give them one type with --dtype"
        )
    return LazyTensor(TensorPlan(name, first.dtype, (rows.num_rows, *first.shape[1:])), rows)
