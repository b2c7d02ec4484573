"""Conversations are the same samples whichever package made them; adapters are what the others take."""

import json

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from qwen3_ckpt.cli import main as ckpt
from qwen3_data.cli import main as data
from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.hf_folder import open_hf_folder, write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors
from qwen3_model.config import Qwen3Config
from qwen3_model.text.sft import open_sft
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_train.cli import main as train
from qwen3_train.data.sft_prepare import open_samples
from qwen3_train.data.sft_samples import make_samples
from qwen3_train.settings.hf_loader import SftFileSettings, read_hf_data

LENGTH = 512
ATOL_FUSED = 1e-6  # float32 sums of rank 2
MODEL = {
    "vocab_size": 4096, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True, "model_type": "qwen3",
    "initializer_range": 0.02,
}  # fmt: skip


def invoke(command, *words):
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def handlers(length, pack):
    found = [{"type": "AlpacaInstructDataHandler", "seq_length": length}]
    if pack:
        found.append({"type": "PackingHandler", "seq_length": length})
    return found


@pytest.mark.parametrize("pack", [True, False])
def test_qwen3_data_sft_and_the_loader_of_training_make_the_same_samples(
    tmp_path, sft_seed_dir, demo_tokenizer_dir, pack
):
    source = sft_seed_dir / "self_instruct_seed_tasks.jsonl"
    invoke(
        data, "sft", "--input", source, "--output-prefix", tmp_path / "x", "--tokenizer-dir",
        demo_tokenizer_dir, "--seq-length", LENGTH, "--pack" if pack else "--no-pack", "--quiet",
    )  # fmt: skip
    prefix = tmp_path / "x_sft"
    section = {
        "type": "HFDataLoader", "path": "json", "data_files": str(source),
        "cache_dir": str(tmp_path / "cache"), "handler": handlers(LENGTH, pack),
    }  # fmt: skip
    ours, _ = make_samples(
        read_hf_data({"data_loader": section}), Qwen3Tokenizer.from_dir(demo_tokenizer_dir)
    )
    settings = SftFileSettings(prefix=prefix, shuffle=False, seed=0, seq_length=LENGTH)
    _, theirs = open_samples(settings, demo_tokenizer_dir)
    assert len(open_sft(prefix)) == len(ours.firsts_P) - 1
    for name in ("ids_T", "mask_T", "lengths_S", "firsts_P"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory, demo_tokenizer_dir):
    """Train adapters for three steps on files of qwen3-data sft; return base and run folder."""
    folder = tmp_path_factory.mktemp("lora")
    (folder / "base").mkdir()
    for path in demo_tokenizer_dir.iterdir():
        (folder / "base" / path.name).write_bytes(path.read_bytes())
    config = Qwen3Config.from_hf(MODEL)
    (folder / "base/config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    weights = init_weights(config, 1)
    write_hf_weights(folder / "base", [(TensorPlan(n, "F32", v.shape), iter([v])) for n, v in weights])
    records = [{"instruction": f"Say {word}.", "output": f"{word}!"} for word in ("one", "two", "three")]
    (folder / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    invoke(
        data, "sft", "--input", folder / "in.jsonl", "--output-prefix", folder / "x", "--tokenizer-dir",
        demo_tokenizer_dir, "--seq-length", 32, "--no-pack", "--quiet",
    )  # fmt: skip
    pet = {"lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ".*"}
    values = {
        "output_dir": str(folder / "out"), "run_mode": "finetune",
        "pretrained_model_dir": str(folder / "base"),
        "train_dataset": {"data_loader": {"type": "SftFileDataLoader", "path": str(folder / "x_sft")}},
        "lr_schedule": {"type": "ConstantWarmUpLR", "learning_rate": 0.01},
        "context": {"device_target": "CPU"}, "model": {"model_config": {"pet_config": pet}},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    invoke(train, "launch", "--config", folder / "run.yaml")
    return folder / "base", folder / "out"


def test_adapters_of_a_run_are_exported_and_fused_with_their_own_alpha(tmp_path, lora_run):
    base, run_dir = lora_run
    invoke(ckpt, "lora", "export", run_dir / "checkpoint", tmp_path / "peft", "--base-model", base)
    invoke(ckpt, "lora", "fuse", base, run_dir / "checkpoint", tmp_path / "fused", "--quiet")
    told = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    stated = json.loads((run_dir / "adapter_config.json").read_text())
    for key in ("r", "lora_alpha", "target_modules", "peft_type", "task_type", "bias"):
        assert told[key] == stated[key]
    held = open_safetensors(next((run_dir / "checkpoint/rank_0").glob("*.safetensors")))
    before, after = open_hf_folder(base), open_hf_folder(tmp_path / "fused")
    moved = 0
    for name in before.tensors:
        half = name.replace(".weight", ".lora_{}.weight")
        expected = np.array(before.raw(name))
        if half.format("A") in held.tensors:
            change = 2.0 * held.raw(half.format("B")) @ held.raw(half.format("A"))
            expected = expected + (change.T if "embed_tokens" in name else change)
            moved += 1
        np.testing.assert_allclose(after.raw(name), expected, atol=ATOL_FUSED)
    assert moved == 8
