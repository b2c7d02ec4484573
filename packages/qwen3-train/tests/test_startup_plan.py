"""What `plan` says of a start; the rates behind it are those of docs/scale.md."""

from pathlib import Path

import pytest
from plan_inputs import make_settings

from qwen3_model.config import SIZES
from qwen3_model.ranks.layout import Layout
from qwen3_train.plan.plan import make_plan, plan_values
from qwen3_train.plan.startup import plan_startup
from qwen3_train.plan.text import plan_text

LARGE = Layout(dp=32, tp=8, pp=4)
TOKENS = {"num_samples": 2_440_000_000, "num_files": 64, "keeps_indexes": True}  # 1e13 of them


def test_a_first_start_with_ten_trillion_tokens_takes_what_the_page_says():
    start = plan_startup(make_settings("32B", layout=LARGE, **TOKENS))
    page = (Path(__file__).parents[3] / "docs/scale.md").read_text(encoding="utf-8")
    assert "takes some 280 seconds on 64 nodes, 380 on 16" in page.replace("\n", " ")
    assert start.first_data_s == pytest.approx(280, rel=0.05)
    few = plan_startup(make_settings("32B", layout=Layout(dp=4, tp=8, pp=4), **TOKENS))
    assert few.first_data_s == pytest.approx(380, rel=0.05)
    assert start.later_data_s < 1


def test_without_a_cache_each_start_makes_all_indexes():
    start = plan_startup(make_settings("32B", layout=LARGE, **(TOKENS | {"keeps_indexes": False})))
    assert start.first_data_s == start.later_data_s > 2000


def test_data_that_say_themselves_how_many_they_are_have_no_seconds():
    for changes in ({"num_samples": None}, {"num_files": 0}):
        start = plan_startup(make_settings("32B", layout=LARGE, **changes))
        assert start.first_data_s is start.later_data_s is None


@pytest.mark.parametrize("dp", [1, 8, 32])
def test_replicas_that_send_weights_read_them_once(dp):
    layout = Layout(dp=dp, tp=8, pp=4)
    once, each = (
        plan_startup(make_settings("32B", layout=layout, reads_weights=True, broadcasts=broadcasts))
        for broadcasts in (True, False)
    )
    assert once.weights_bytes == 2 * SIZES["32B"].num_parameters()
    assert each.weights_bytes == dp * once.weights_bytes


@pytest.mark.parametrize("layout", [(1, 4, 4), (2, 8, 4), (8, 8, 4), (32, 8, 4)])
def test_a_plan_says_all_in_text_and_in_numbers(layout):
    dp, tp, pp = layout
    settings = make_settings(
        "32B", layout=Layout(dp=dp, tp=tp, pp=pp, sequence_parallel=True), micro_batch_num=32,
        parallel_optimizer=True, shares_writing=True, broadcasts=True, reads_weights=True, recompute="full",
        **TOKENS,
    )  # fmt: skip
    plan = make_plan(settings, num_devices=None, memory_bytes=None)
    text = plan_text(plan)
    for said in ("Checkpoint: 393.2 GB", "all ranks read 393.2 GB", "communication groups", "idle in the"):
        assert said in text
    assert "Start: indexes of samples" in text
    assert "65.5 GB of weights 3.3 s" in text
    values = plan_values(plan)
    rows = [*values["traffic"], [values["totals"]], [values["start"]], values["stages"]]
    numbers = [each for row in rows for item in row for each in item.values() if not isinstance(each, str)]
    assert not any(isinstance(each, bool) for each in numbers)
    assert all(item["calls"] >= 1 for items in values["traffic"] for item in items)
