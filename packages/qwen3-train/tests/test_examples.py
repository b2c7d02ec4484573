"""The files of `examples/data` are the same conversations in three forms."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen3_train.cli import main

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("config", ["laptop_lora_qwen3_0.6b", "laptop_finetune_qwen3_0.6b"])
def test_the_three_forms_give_the_same_samples(demo_tokenizer_dir, tmp_path, config):
    told = set()
    for form in ("messages", "alpaca", "sharegpt"):
        shown = CliRunner().invoke(
            main,
            ["inspect-data", "--config", str(ROOT / "configs" / "qwen3" / f"{config}.yaml"),
             "--pretrained_model_dir", str(demo_tokenizer_dir), "--samples", "2", "--table",
             "--train_dataset.data_loader.cache_dir", str(tmp_path),
             "--train_dataset.data_loader.data_files", str(ROOT / "examples" / "data" / f"{form}.jsonl")],
        )  # fmt: skip
        assert shown.exit_code == 0, shown.output
        told.add(shown.stdout)
    assert len(told) == 1
    assert len(told.pop()) > 1000
