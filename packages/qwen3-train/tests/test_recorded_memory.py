"""The planner against what MindSpore's own backend plans: `tools/ascend_dry_run record` wrote the file."""

import json
from pathlib import Path

import pytest

from qwen3_model.command.keys import parse_dotted
from qwen3_model.command.run_config import load_run_config
from qwen3_train.plan.memory import plan_memory
from qwen3_train.plan.settings import read_plan_settings
from qwen3_train.settings.schema import TRAIN

CONFIGS = Path(__file__).parents[3] / "configs" / "qwen3"
RECORDED = json.loads(Path(__file__).with_name("recorded_memory.json").read_text(encoding="utf-8"))[
    "settings"
]
MOST = 0.1


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row["name"])
def test_the_plan_is_within_a_tenth_of_what_mindspore_plans(row):
    changes = [*row["changes"], "--context.device_target", "Ascend"]
    config = load_run_config(CONFIGS / f"{row['config']}.yaml", parse_dotted(changes, TRAIN), TRAIN)
    settings = read_plan_settings(config)
    assert settings.layout.num_ranks == row["ranks"]
    stage = plan_memory(settings)[settings.layout.coordinates(row["rank"])[0]]
    off = stage.total / row["peak_bytes"] - 1
    assert abs(off) <= MOST, f"{off:+.1%} at the {stage.fullest}: {stage}"


def test_each_kind_of_run_and_of_stage_is_recorded():
    assert {row["config"].partition("_")[0] for row in RECORDED} == {"pretrain", "finetune", "lora"}
    last_and_middle = {row["rank"] * 4 // row["ranks"] for row in RECORDED if row["ranks"] > 8}
    assert last_and_middle >= {1, 3}
