"""Weights and adapters of a tiny model in every form that is read, cut from whole tensors."""

import json
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.fused import FusedLayout
from qwen3_model.checkpoints.safetensors_file import TensorPlan, write_safetensors
from qwen3_model.checkpoints.strategy import TensorLayout, encode_strategy, write_strategy
from qwen3_model.config import Qwen3Config
from qwen3_model.ranks.layout import Layout, placement, shard_slices

RAW = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 64, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
CONFIG = Qwen3Config.from_hf(RAW)
FUSED_NAMES = {
    "input_layernorm": "input_layernorm", "post_attention_layernorm": "pre_mlp_layernorm",
    "self_attn.o_proj": "self_attention.linear_proj", "self_attn.q_norm": "self_attention.q_layernorm",
    "self_attn.k_norm": "self_attention.k_layernorm", "mlp.down_proj": "mlp.linear_fc2",
    "self_attn.q_proj": "", "self_attn.k_proj": "", "self_attn.v_proj": "", "mlp.gate_proj": "",
    "mlp.up_proj": "",
}  # fmt: skip


def whole_weights(config: Qwen3Config = CONFIG) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    shapes = config.weight_shapes().items()
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes}


def fuse_by_hand(whole: dict[str, np.ndarray], layout: FusedLayout) -> dict[str, np.ndarray]:
    """Return mindformers' weights: rows of q, k, v by groups or in turn, of gate and up in turn or not."""
    groups = CONFIG.num_kv_heads
    theirs = {
        "embedding.word_embeddings.weight": whole["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": whole["model.norm.weight"],
        "output_layer.weight": whole["lm_head.weight"],
    }
    for number in range(CONFIG.num_layers):
        ours = {name: whole[f"model.layers.{number}.{name}.weight"] for name in FUSED_NAMES}
        for name, other in FUSED_NAMES.items():
            if other:
                theirs[f"decoder.layers.{number}.{other}.weight"] = ours[name]
        parts = [ours[f"self_attn.{part}_proj"] for part in "qkv"]
        if not layout.contiguous_qkv:
            cut = [part.reshape(groups, -1, part.shape[1]) for part in parts]
            parts = [part[group] for group in range(groups) for part in cut]
        theirs[f"decoder.layers.{number}.self_attention.linear_qkv.weight"] = np.concatenate(parts)
        pair = [ours["mlp.gate_proj"], ours["mlp.up_proj"]]
        rows = np.stack(pair, 1).reshape(-1, CONFIG.hidden_size)
        theirs[f"decoder.layers.{number}.mlp.linear_fc1.weight"] = (
            rows if layout.interleaved_mlp else np.concatenate(pair)
        )
    return theirs


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plans = [(TensorPlan(name, "F32", each.shape), [each.tobytes()]) for name, each in tensors.items()]
    write_safetensors(path, plans, {"format": "ms"} | (metadata or {}))


def write_run(
    run: Path,
    whole: dict[str, np.ndarray],
    layout: Layout,
    *,
    merged_strategy: bool = False,
    told: dict | None = None,
) -> Path:
    """Write what the ranks of a run write, the optimizer's state left out; return the run's folder."""
    items = {}
    for rank in range(layout.num_ranks):
        stage, _, shard = layout.coordinates(rank)
        own = {name: each for name, each in whole.items() if _stage_of(name, layout) == stage}
        parts = {
            name: np.ascontiguousarray(each[shard_slices(name, each.shape, tp=layout.tp, shard=shard)])
            for name, each in own.items()
        }
        layouts = {
            name: TensorLayout(
                dev_matrix=(layout.dp, layout.tp),
                tensor_map=tuple(0 if axis == "tp" else -1 for axis in placement(name)),
            )
            for name in own
        }
        items |= {f"{stage}-{name}": (stage, each) for name, each in layouts.items()}
        file = run / "checkpoint" / f"rank_{rank}" / f"qwen3_rank_{rank}-1_2.safetensors"
        metadata = {"qwen3_train": json.dumps(told)} if told else None
        write_tensors(file, parts | {"global_step": np.zeros(1, np.float32)}, metadata)
        if not merged_strategy:
            write_strategy(run / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt", stage, layouts)
    if merged_strategy:
        (run / "merged.ckpt").write_bytes(encode_strategy(0, items))
    return run


def write_merged(folder: Path, whole: dict[str, np.ndarray]) -> Path:
    """Write a merged checkpoint in two parts; return the folder above it."""
    parts: list[dict[str, np.ndarray]] = [{}, {}]
    for number, (name, each) in enumerate(whole.items()):
        parts[number % 2][name] = each
    unified, weight_map = folder / "1_2_ckpt_convert" / "unified_safe", {}
    for number, part in enumerate(parts):
        write_tensors(unified / f"part{number}.safetensors", part)
        weight_map |= dict.fromkeys(part, f"part{number}.safetensors")
    told = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (unified / "param_name_map.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def write_hf(folder: Path, whole: dict[str, np.ndarray], raw: dict = RAW) -> Path:
    write_tensors(folder / "model.safetensors", whole)
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


def _stage_of(name: str, layout: Layout) -> int:
    if name.startswith("model.layers."):
        return int(name.split(".")[2]) // (CONFIG.num_layers // layout.pp)
    return 0 if "embed_tokens" in name else layout.pp - 1
