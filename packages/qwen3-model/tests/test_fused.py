"""mindformers' fused weights read as ours, against rows laid out by hand."""

import numpy as np
import pytest

from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.fused import FusedLayout, fused_shapes, unfused
from qwen3_model.checkpoints.rank_tensors import open_rank_tensors
from qwen3_model.checkpoints.safetensors_file import TensorPlan, write_safetensors
from qwen3_model.checkpoints.strategy import TensorLayout, write_strategy
from qwen3_model.config import Qwen3Config

HEAD, GROUPS, PER_GROUP = 8, 2, 2
LAYOUTS = [FusedLayout(qkv, mlp) for qkv in (False, True) for mlp in (False, True)]


@pytest.fixture(scope="module")
def config():
    return Qwen3Config.from_hf({
        "vocab_size": 48, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": PER_GROUP * GROUPS, "num_key_value_heads": GROUPS, "head_dim": HEAD,
        "max_position_embeddings": 64, "rope_theta": 1e4, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu",
    })  # fmt: skip


def fuse_by_hand(weights, config, layout):
    """Return mindformers' tensors, each row put in its place on its own."""
    named = {
        "embedding.word_embeddings.weight": weights["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": weights["model.norm.weight"],
        "output_layer.weight": weights["lm_head.weight"],
    }
    for n in range(config.num_layers):
        old, new = f"model.layers.{n}", f"decoder.layers.{n}"
        for ours, theirs in (
            ("input_layernorm", "input_layernorm"), ("post_attention_layernorm", "pre_mlp_layernorm"),
            ("self_attn.o_proj", "self_attention.linear_proj"), ("mlp.down_proj", "mlp.linear_fc2"),
            ("self_attn.q_norm", "self_attention.q_layernorm"),
            ("self_attn.k_norm", "self_attention.k_layernorm"),
        ):  # fmt: skip
            named[f"{new}.{theirs}.weight"] = weights[f"{old}.{ours}.weight"]
        q, k, v = (weights[f"{old}.self_attn.{part}_proj.weight"] for part in "qkv")
        gate, up = (weights[f"{old}.mlp.{part}_proj.weight"] for part in ("gate", "up"))
        rows = []
        for group in range(GROUPS):
            own = PER_GROUP * HEAD
            rows += [*q[group * own : (group + 1) * own]]
            rows += [*k[group * HEAD : (group + 1) * HEAD], *v[group * HEAD : (group + 1) * HEAD]]
        named[f"{new}.self_attention.linear_qkv.weight"] = (
            np.concatenate([q, k, v]) if layout.contiguous_qkv else np.stack(rows)
        )
        pairs = [row for pair in zip(gate, up, strict=True) for row in pair]
        named[f"{new}.mlp.linear_fc1.weight"] = (
            np.stack(pairs) if layout.interleaved_mlp else np.concatenate([gate, up])
        )
    return named


def write_ranks(folder, named, tp):
    """Write the tensors as `tp` ranks would, cut as their strategy files say."""
    files = {}
    for rank in range(tp):
        parts, layouts = {}, {}
        for name, array in named.items():
            axis = 1 if "linear_proj" in name or "linear_fc2" in name else 0 if array.ndim == 2 else None
            tensor_map = tuple(0 if dim == axis else -1 for dim in range(array.ndim))
            layouts[name] = TensorLayout(dev_matrix=(1, tp), tensor_map=tensor_map)
            parts[name] = array if axis is None else np.split(array, tp, axis)[rank]
        path = folder / "checkpoint" / f"rank_{rank}" / f"qwen3_rank_{rank}-1_2.safetensors"
        path.parent.mkdir(parents=True)
        entries = [(TensorPlan(name, "F32", part.shape), [part]) for name, part in parts.items()]
        write_safetensors(path, entries, {"format": "ms"})
        (folder / "strategy").mkdir(exist_ok=True)
        write_strategy(folder / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt", 0, layouts)
        files[rank] = path
    return files


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_rows_of_our_weights_and_moments_come_out_of_fused_ones(tmp_path, config, layout, tp):
    weights = dict(init_weights(config, 3))
    named = fuse_by_hand(weights, config, layout)
    assert {name: array.shape for name, array in named.items()} == fused_shapes(config)
    moments = {f"adam_m.{name}": -array for name, array in named.items()}
    tensors = unfused(open_rank_tensors(write_ranks(tmp_path, named | moments, tp)), config, layout)
    assert set(tensors.names()) == {f"{prefix}{name}" for name in weights for prefix in ("", "adam_m.")}
    for name, array in weights.items():
        assert tensors.shape(name) == tensors.shape(f"adam_m.{name}") == array.shape
        size = len(array)
        for rows in (slice(0, size), slice(size // 2, size), slice(size // 4, size // 2 + 1)):
            wanted = (rows, *(slice(0, width) for width in array.shape[1:]))
            dtype, part = tensors.read(name, wanted)
            assert dtype == "F32"
            np.testing.assert_array_equal(part, array[rows], err_msg=name)
            np.testing.assert_array_equal(tensors.read(f"adam_m.{name}", wanted)[1], -array[rows])


def test_tensors_under_our_own_names_are_left_as_they_are(tmp_path, config):
    named = {name: array for name, array in init_weights(config, 3)}
    path = tmp_path / "a.safetensors"
    write_safetensors(
        path, [(TensorPlan(n, "F32", a.shape), [a]) for n, a in named.items()], {"format": "ms"}
    )
    tensors = open_rank_tensors({0: path})
    assert unfused(tensors, config, FusedLayout()) is tensors
