"""Small checkpoints of any layout, with the whole tensors that they were cut from."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.safetensors_file import TensorPlan, write_safetensors
from qwen3_model.checkpoints.strategy import TensorLayout, write_strategy
from qwen3_model.config import SIZES, Qwen3Config
from qwen3_model.ranks.layout import placement

TINY = dataclasses.replace(
    SIZES["0.6B"], vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=4, num_heads=8,
    num_kv_heads=4, head_dim=4, tie_word_embeddings=False, dtype="float32",
)  # fmt: skip
TIED = dataclasses.replace(TINY, tie_word_embeddings=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    dp: int = 1
    tp: int = 1
    pp: int = 1
    with_moments: bool = False
    shard_moments: bool = False
    pieces_as_replicas: bool = False  # opt_shard_size -1
    remove_redundancy: bool = False
    dtype: str = "F32"
    config: Qwen3Config = TINY
    suffix: str = "1_5"


@dataclasses.dataclass(frozen=True)
class Made:
    checkpoint_dir: Path
    strategy_dir: Path
    whole: dict[str, np.ndarray]


def make_checkpoint(run_dir: Path, spec: Spec) -> Made:
    rng = np.random.default_rng(7)
    kind = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16}[spec.dtype]
    whole = {}
    for name, shape in spec.config.weight_shapes().items():
        for prefix in ("", "adam_m.", "adam_v.") if spec.with_moments else ("",):
            values = rng.integers(0, 0x3F80, shape) if spec.dtype == "BF16" else rng.standard_normal(shape)
            whole[prefix + name] = values.astype(kind)
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.json").write_text(json.dumps(spec.config.to_hf()), encoding="utf-8")
    for stage in range(spec.pp):
        layouts = {name: _layout(name, spec) for name in whole if stage in _stages_of(name, spec)}
        for local in range(spec.dp * spec.tp):
            rank = stage * spec.dp * spec.tp + local
            write_strategy(run_dir / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt", stage, layouts)
            _write_rank(run_dir / "checkpoint" / f"rank_{rank}", rank, local, layouts, whole, spec)
    return Made(run_dir / "checkpoint", run_dir / "strategy", whole)


def _stages_of(name: str, spec: Spec) -> set[int]:
    bare = name.removeprefix("adam_m.").removeprefix("adam_v.")
    if bare.startswith("model.layers."):
        return {int(bare.split(".")[2]) * spec.pp // spec.config.num_layers}
    if "embed_tokens" in bare:
        return {0, spec.pp - 1} if spec.config.tie_word_embeddings else {0}
    return {spec.pp - 1}


def _layout(name: str, spec: Spec) -> TensorLayout:
    bare = name.removeprefix("adam_m.").removeprefix("adam_v.")
    tensor_map = tuple(0 if axis == "tp" else -1 for axis in placement(bare))
    cut = spec.shard_moments and bare != name
    is_whole = 0 not in tensor_map  # then -1 would mean all ranks of the stage
    pieces = -1 if spec.pieces_as_replicas and not is_whole else spec.dp
    return TensorLayout(
        dev_matrix=(spec.dp, spec.tp), tensor_map=tensor_map,
        opt_shard_step=spec.tp if cut else 0, opt_shard_size=pieces if cut else 0,
    )  # fmt: skip


def slice_of(value: np.ndarray, layout: TensorLayout, local: int) -> np.ndarray:
    parts, piece = layout.slice_of(local)
    for dim, (part, count) in enumerate(zip(parts, layout.splits(), strict=True)):
        value = np.split(value, count, axis=dim)[part]
    return np.split(value, layout.optimizer_pieces())[piece]


def _write_rank(folder, rank, local, layouts, whole, spec):
    folder.mkdir(parents=True)
    entries = []
    for name, layout in layouts.items():
        twins = [r for r in range(spec.dp * spec.tp) if layout.slice_of(r) == layout.slice_of(local)]
        if spec.remove_redundancy and twins[0] != local:
            continue
        value = np.ascontiguousarray(slice_of(whole[name], layout, local))
        entries.append((TensorPlan(name, spec.dtype, value.shape), [value]))
    step = np.array(5, np.int32)
    entries.append((TensorPlan("global_step", "I32", ()), [step]))
    metadata = {"format": "ms", "remove_redundancy": str(spec.remove_redundancy)}
    write_safetensors(folder / f"qwen3_rank_{rank}-{spec.suffix}.safetensors", entries, metadata)
    epoch, number = map(int, spec.suffix.split("_"))
    meta = {
        "last_epoch": epoch,
        "last_step": number,
        "last_ckpt_file": f"qwen3_rank_{rank}-{spec.suffix}.safetensors",
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
