"""The ready YAMLs for fine-tuning: `plan` accepts their layouts, `launch` their keys."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen3_model.run_config import load_run_config
from qwen3_train.cli import main
from qwen3_train.schema import TRAIN
from qwen3_train.settings import read_settings

CONFIGS = Path(__file__).resolve().parents[3] / "configs/qwen3"
SIZES = ("0.6b", "1.7b", "4b", "8b", "14b", "32b")
RANK = 8


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["finetune", "lora"])
def test_plan_accepts_the_layout_of_the_guide(kind, size):
    path = CONFIGS / f"{kind}_qwen3_{size}_4k.yaml"
    result = CliRunner().invoke(main, ["plan", "--config", str(path), "--json"])
    assert result.exit_code == 0, result.output
    text = path.read_text(encoding="utf-8")
    is_pipelined = (kind, size) == ("finetune", "32b")
    for key, value in (
        ("data_parallel", 1),
        ("model_parallel", 4 if is_pipelined else 8),
        ("pipeline_stage", 4 if is_pipelined else 1),
        ("micro_batch_num", 4 if is_pipelined else 1),
        ("recompute", size in ("14b", "32b")),
    ):
        assert f"  {key}: {value}\n" in text
    assert json.loads(result.stdout)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["finetune", "lora"])
def test_launch_takes_every_key(kind, size, demo_tokenizer_dir):
    overrides = [
        ("use_parallel", "False"), ("pretrained_model_dir", str(demo_tokenizer_dir)),
        ("context.device_target", "CPU"),
    ]  # fmt: skip
    path = CONFIGS / f"{kind}_qwen3_{size}_4k.yaml"
    settings = read_settings(load_run_config(path, overrides, TRAIN))
    assert settings.data.seq_length == 4096
    assert settings.data.chat.pack_strategy == "pack"
    if kind == "finetune":
        assert settings.lora is None
    else:
        assert (settings.lora.rank, len(settings.lora.modules)) == (RANK, 7 * settings.model.num_layers)


def test_plan_takes_the_length_of_the_handlers(tmp_path):
    path = CONFIGS / "finetune_qwen3_0.6b_4k.yaml"
    words = ["--train_dataset.data_loader.handler.0.seq_length", "2048"]
    words += ["--train_dataset.data_loader.handler.1.seq_length", "2048"]
    result = CliRunner().invoke(main, ["plan", "--config", str(path), "--json", *words])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["batch"]["tokens_per_step"] == 8 * 2048
