"""Adapters that qwen3-train saves under any layout are merged, fused and exported by qwen3-ckpt."""

import json

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from qwen3_ckpt.cli import main as ckpt
from qwen3_model.checkpoints.adapters import base_fingerprint
from qwen3_model.checkpoints.checkpoint_files import EpochStep
from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.hf_folder import open_hf_folder, write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan
from qwen3_model.config import Qwen3Config
from qwen3_model.ranks.layout import Layout, shard_slices
from qwen3_train.checkpoints.checkpoint import FloatTensor, TrainState, save_checkpoint
from qwen3_train.checkpoints.strategy_files import write_strategies
from qwen3_train.layout.stages import is_shared_out
from qwen3_train.settings.lora import read_lora, stage_trained

RAW = {
    "model_type": "qwen3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
CONFIG = Qwen3Config.from_hf(RAW)
RANK, ALPHA = 2, 6
LORA = read_lora({"lora_rank": RANK, "lora_alpha": ALPHA, "target_modules": ".*"}, CONFIG)
LAYOUTS = [Layout(), Layout(tp=2), Layout(pp=2), Layout(dp=2), Layout(dp=2, tp=2, pp=2)]
EMBEDDING = "model.embed_tokens"
ATOL_FUSED = 2e-5  # float32, another order of the product; values reach 30


def whole_tensors():
    rng = np.random.default_rng(5)
    return {
        prefix + name: rng.standard_normal(shape, dtype=np.float32)
        for name, shape in LORA.trained.items()
        for prefix in ("", "adam_m.", "adam_v.")
    }


def write_run(run_dir, layout, whole, base):
    """Write what every rank of a run of adapters writes, with moments shared out over the replicas."""
    for rank in range(layout.num_ranks):
        stage, replica, shard = layout.coordinates(rank)
        tensors = []
        for name, shape in stage_trained(LORA, CONFIG, layout, (), stage).items():
            for prefix in ("", "adam_m.", "adam_v."):
                value = whole[prefix + name]
                part = value[shard_slices(name, value.shape, tp=layout.tp, shard=shard)]
                assert part.shape == shape
                if prefix and is_shared_out(shape, layout.dp):
                    part = np.split(part, layout.dp)[replica]
                tensors.append(
                    FloatTensor(prefix + name, part.shape, lambda part=part: np.ascontiguousarray(part))
                )
        rank_dir = run_dir / "checkpoint" / f"rank_{rank}"
        rank_dir.mkdir(parents=True)
        save_checkpoint(
            rank_dir,
            f"qwen3_rank_{rank}",
            EpochStep(1, 7),
            TrainState(7, "data", base_fingerprint(base)),
            tensors,
        )
        write_strategies(run_dir, layout, CONFIG, rank, shares_moments=layout.dp > 1, lora=LORA)
    (run_dir / "config.json").write_text(json.dumps(CONFIG.to_hf()), encoding="utf-8")
    told = {"lora_alpha": ALPHA, "base_model_name_or_path": str(base)}
    (run_dir / "adapter_config.json").write_text(json.dumps(told), encoding="utf-8")


def run(*arguments):
    result = CliRunner().invoke(ckpt, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf()), encoding="utf-8")
    write_hf_weights(folder, [(TensorPlan(n, "F32", a.shape), [a]) for n, a in init_weights(CONFIG, 1)])
    return folder


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_adapters_of_any_layout_are_merged_fused_and_exported(tmp_path, base, layout):
    whole, run_dir = whole_tensors(), tmp_path / "run"
    write_run(run_dir, layout, whole, base)
    merged, fused, peft = tmp_path / "merged", tmp_path / "fused", tmp_path / "peft"
    strategies = ("--src-strategy-dirs", run_dir / "strategy")
    run("merge", "--mindspore-ckpt-dir", run_dir / "checkpoint", *strategies, "--output-dir", merged)
    held = {}
    for path in merged.rglob("*.safetensors"):
        held |= safetensors.numpy.load_file(path)
    for name, value in whole.items():
        np.testing.assert_array_equal(held[name], value, err_msg=name)
    run("lora", "fuse", base, run_dir, fused)
    weights = dict(init_weights(CONFIG, 1))
    for name, value in weights.items():
        module = name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in whole:
            change = whole[f"{module}.lora_B.weight"] @ whole[f"{module}.lora_A.weight"] * (ALPHA / RANK)
            value = value + (change.T if module == EMBEDDING else change)
        np.testing.assert_allclose(open_hf_folder(fused).float32(name), value, rtol=0, atol=ATOL_FUSED)
    run("lora", "export", run_dir, peft)
    exported = safetensors.numpy.load_file(peft / "adapter_model.safetensors")
    assert len(exported) == len(LORA.trained) + 2  # the tied head's, which is the embedding's turned round
    for name in LORA.trained:
        if EMBEDDING not in name:
            np.testing.assert_array_equal(exported[f"base_model.model.{name}"], whole[name], err_msg=name)
    half = exported[f"base_model.model.{EMBEDDING}.lora_embedding_A"]
    np.testing.assert_array_equal(half, whole[f"{EMBEDDING}.lora_A.weight"])
    told = json.loads((peft / "adapter_config.json").read_text(encoding="utf-8"))
    assert (told["base_model_name_or_path"], told["lora_alpha"]) == (str(base), ALPHA)
