"""The ready YAMLs for fine-tuning: `plan` accepts their layouts, `launch` their keys."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen3_model.command.run_config import load_run_config
from qwen3_model.errors import ConfigError
from qwen3_train.cli import main
from qwen3_train.launch.run_arguments import read_config
from qwen3_train.settings.run import read_settings
from qwen3_train.settings.schema import TRAIN

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


@pytest.mark.parametrize(
    ("kind", "size", "layout", "num_devices"),
    [
        # The guide's two examples on its largest model, by the keys that it gives on the command line.
        ("finetune", "32b", {"data": 1, "model": 4, "stage": 4, "micro": 4}, 16),
        ("lora", "32b", {"data": 1, "model": 8, "stage": 1, "micro": 1}, 8),
    ],
)
def test_launch_and_plan_take_the_commands_of_the_guide(kind, size, layout, num_devices, demo_tokenizer_dir):
    path = CONFIGS / f"{kind}_qwen3_{size}_4k.yaml"
    keys = {
        "parallel_config.data_parallel": layout["data"], "parallel_config.model_parallel": layout["model"],
        "parallel_config.pipeline_stage": layout["stage"], "parallel_config.micro_batch_num": layout["micro"],
        "recompute_config.recompute": True, "auto_trans_ckpt": True, "use_parallel": True,
        "run_mode": "finetune", "pretrained_model_dir": demo_tokenizer_dir, "context.device_target": "CPU",
    }  # fmt: skip
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    result = CliRunner().invoke(main, ["plan", "--config", str(path), "--json", *words])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["problem"] is None
    assert max(stage["total"] for stage in told["stages"]) < told["max_device_memory_bytes"]
    settings = read_settings(read_config(path, words), worker_num=num_devices)
    assert settings.layout.num_ranks == num_devices
    assert settings.recompute.kind == "full"
    assert settings.weights_from == demo_tokenizer_dir
    assert (settings.layout.pp, settings.micro_batch_num) == (layout["stage"], layout["micro"])
    with pytest.raises(ConfigError, match=rf"{num_devices}"):
        read_settings(read_config(path, words), worker_num=num_devices - 1)


def test_plan_takes_the_length_of_the_handlers(tmp_path):
    path = CONFIGS / "finetune_qwen3_0.6b_4k.yaml"
    words = ["--train_dataset.data_loader.handler.0.seq_length", "2048"]
    words += ["--train_dataset.data_loader.handler.1.seq_length", "2048"]
    result = CliRunner().invoke(main, ["plan", "--config", str(path), "--json", *words])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["batch"]["tokens_per_step"] == 8 * 2048
