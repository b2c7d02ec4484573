"""What generating takes of a device: counted by hand, and as MindSpore's own backend plans it.

`tools/ascend_dry_run --record predict` wrote the recorded file.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen3_infer.cli import main
from qwen3_infer.plan.memory import largest_cache, plan_memory, token_bytes
from qwen3_infer.plan.settings import BLOCK_TOKENS, PlanSettings, read_plan_settings
from qwen3_model.config import SIZES
from qwen3_model.network.cache import BLOCK_TOKENS as CACHE_BLOCK_TOKENS

ROOT = Path(__file__).resolve().parents[3]
RECORDED = json.loads(Path(__file__).with_name("recorded_memory.json").read_text(encoding="utf-8"))
MOST = 0.1
SETTINGS = PlanSettings(
    model=SIZES["0.6B"], tp=1, num_requests=1, request_tokens=1100, cache_tokens=1152, residual_bytes=2,
    memory_bytes=None,
)  # fmt: skip


@pytest.mark.parametrize("row", RECORDED["settings"], ids=lambda row: row["name"])
def test_the_plan_is_within_a_tenth_of_what_mindspore_plans(row):
    settings = read_plan_settings(
        ROOT / "configs/qwen3/predict_qwen3.yaml",
        {
            "pretrained_model_dir": row["size"], "predict_batch_size": row["requests"],
            "max_new_tokens": row["new_tokens"],
        },
        (),
        worker_num=row["ranks"],
        prompt_tokens=row["prompt_tokens"],
        max_memory=None,
    )  # fmt: skip
    memory = plan_memory(replace(settings, model=replace(settings.model, num_layers=row["layers"])))
    off = memory.total / row["peak_bytes"] - 1
    assert abs(off) <= MOST, f"{off:+.1%}: {memory}"


def test_weights_and_cache_are_as_counted_by_hand():
    memory = plan_memory(SETTINGS)
    assert memory.weights == 2 * 596_049_920
    # Keys and values of 8 heads of 128 in 28 layers; 9 blocks of 128 tokens, and one for idle rows.
    assert token_bytes(SETTINGS) == 2 * 28 * 8 * 128 * 2
    assert memory.cache == 10 * 128 * token_bytes(SETTINGS)
    assert BLOCK_TOKENS == CACHE_BLOCK_TOKENS


def test_devices_share_all_but_the_norms():
    norms = 28 * (2 * 1024 + 2 * 128) + 1024
    one, four = (plan_memory(replace(SETTINGS, tp=tp)) for tp in (1, 4))
    assert 4 * four.weights == one.weights + 3 * 2 * norms
    assert 4 * four.cache == one.cache
    assert (one.outside, four.outside) == (0, 400 * 2**20)


def test_the_largest_cache_that_fits_is_the_last_that_fits():
    settings = replace(SETTINGS, memory_bytes=4 << 30)
    most = largest_cache(settings)
    assert plan_memory(replace(settings, cache_tokens=most)).total <= 4 << 30
    assert plan_memory(replace(settings, cache_tokens=most + BLOCK_TOKENS)).total > 4 << 30
    assert largest_cache(SETTINGS) is None


def plan(*arguments):
    return CliRunner().invoke(main, ["plan", *arguments])


def test_the_command_says_what_fits_and_ends_with_1_where_it_does_not(tmp_path):
    small = plan("--pretrained-model-dir", "8B", "--max-device-memory", "14GB")
    assert small.exit_code == 1
    assert "Does not fit: a device needs" in small.stdout
    assert "take more devices" in small.stdout
    more = plan("--pretrained-model-dir", "8B", "--max-device-memory", "14GB", "--worker-num", "2", "--json")
    assert more.exit_code == 0, more.output
    told = json.loads(more.stdout)
    assert (told["devices"], told["problem"]) == (2, None)
    assert told["memory"]["total"] == sum(told["memory"][part] for part in ("weights", "cache", "prompt"))


def test_the_yaml_says_what_no_flag_says():
    yaml = str(ROOT / "configs/qwen3/predict_qwen3.yaml")
    told = json.loads(plan("--config", yaml, "--pretrained-model-dir", "0.6B", "--json").stdout)
    assert (told["requests"], told["request_tokens"]) == (1, 1024 + 512)
    shared = ("--use_parallel", "True", "--parallel_config.model_parallel", "4")
    told = json.loads(plan("--config", yaml, "--pretrained-model-dir", "0.6B", "--json", *shared).stdout)
    assert told["devices"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "name the model as --pretrained-model-dir"),
        (["--pretrained-model-dir", "7B"], 1, "7B is no path and no size"),
        (["--pretrained-model-dir", "8B", "--worker-num", "3"], 1, "does not divide by"),
        (["--pretrained-model-dir", "8B", "--prompt-tokens", "50000"], 2, "more than the model's context"),
        (["--pretrained-model-dir", "8B", "--max-device-memory", "58"], 2, "no amount of memory"),
        (["--pretrained-model-dir", "8B", "--parallel_config.model_parallel", "0"], 2, "must be from 1"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(arguments, code, sentence):
    result = plan(*arguments)
    assert result.exit_code == code
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
