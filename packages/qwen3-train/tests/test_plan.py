"""The guide's recommended settings, and what the planner says about them."""

import json

import pytest
from plan_inputs import make_settings

from qwen3_model.command.spellings import parse_memory
from qwen3_model.config import SIZES
from qwen3_model.errors import UsageError
from qwen3_model.ranks.layout import Layout
from qwen3_train.layout.lora_shapes import Adapters
from qwen3_train.plan.layout_search import Machine, search_layouts, step_time
from qwen3_train.plan.plan import make_plan, plan_values
from qwen3_train.plan.text import plan_text

LIMIT = parse_memory("58GB")
LORA = Adapters(16, "word_embeddings|linear_qkv|linear_proj|linear_fc1|linear_fc2")
ONE_NODE = {"layout": Layout(tp=8, sequence_parallel=True)}
TWO_NODES = {
    "layout": Layout(tp=4, pp=4, sequence_parallel=True), "offset": (-1, -1, 1, 1), "micro_batch_num": 4,
}  # fmt: skip
# Size, settings and GiB on the fullest device: training of 4096 tokens on devices of 58 GB.
RECOMMENDED = [
    ("32B", TWO_NODES | {"recompute": "full"}, 36.0),
    ("14B", ONE_NODE | {"recompute": "full"}, 27.5),
    ("8B", ONE_NODE, 18.9),
    ("4B", ONE_NODE, 11.0),
    ("1.7B", ONE_NODE, 5.6),
    ("0.6B", ONE_NODE, 3.0),
    ("32B", {"layout": Layout(tp=8), "recompute": "full", "adapters": LORA}, 24.2),
    ("14B", {"layout": Layout(tp=8), "recompute": "full", "adapters": LORA}, 12.8),
    ("8B", {"layout": Layout(tp=8), "adapters": LORA}, 15.5),
]


@pytest.mark.parametrize(("size", "changes", "needed_gib"), RECOMMENDED)
def test_the_guides_settings_fit(size, changes, needed_gib):
    plan = make_plan(make_settings(size, **changes), num_devices=None, memory_bytes=LIMIT)
    assert plan.problem == ""
    assert max(stage.total for stage in plan.stages) / 2**30 == pytest.approx(needed_gib, abs=0.1)
    assert len(plan.search.fitting) >= 1


def test_the_plan_says_where_the_guide_could_be_faster():
    notes = make_plan(make_settings("32B", **RECOMMENDED[0][1]), num_devices=None, memory_bytes=LIMIT).notes
    assert notes[0].startswith(
        "Recomputation full is not needed: without it the fullest device takes 45.5 of 58.0"
    )
    assert "idle for 43% of a step with micro_batch_num 4; 16 micro-batches would leave 16%" in notes[1]
    small = make_plan(make_settings("0.6B", **ONE_NODE), num_devices=None, memory_bytes=LIMIT).notes
    assert "With a global batch of 8, dp 4 x tp 2 x pp 1 without recomputation would fit in 8.3" in small[-1]


def test_a_replicated_optimizer_is_named_with_what_it_costs():
    plan = make_plan(make_settings("8B", layout=Layout(dp=2, tp=4)), num_devices=None, memory_bytes=LIMIT)
    # For each of 8.19 billion parameters over 4 shards half of 8 bytes, less half of 4 for the rows updated.
    assert "enable_parallel_optimizer would save 3.81 GiB" in plan.notes[0]


def test_the_search_keeps_the_global_batch_and_puts_the_fastest_first():
    found = search_layouts(make_settings("8B", layout=Layout(tp=8), accumulation=16), 8, LIMIT)
    assert {candidate.settings.global_batch for candidate in found.fitting} == {16}
    times = [candidate.time.total_s for candidate in found.fitting]
    assert times == sorted(times)
    assert all(candidate.memory_bytes <= LIMIT for candidate in found.fitting)
    assert all(candidate.memory_bytes > LIMIT for candidate in found.too_large)


def test_every_grid_is_either_listed_or_refused_with_a_reason():
    found = search_layouts(make_settings("0.6B", accumulation=6), 12, LIMIT)
    # tp 1, 2, 3, 4, 6 times the divisors of what is left; 12 is more than a node.
    assert len(found.fitting) + len(found.too_large) + len(found.refused) == 6 + 4 + 3 + 2 + 2
    assert any(
        sentence.startswith("dp 4 x tp 3 x pp 1: num_attention_heads=16") for sentence in found.refused
    )


def test_less_memory_never_allows_more_layouts():
    settings = make_settings("14B", layout=Layout(tp=8), accumulation=64)
    sizes = [len(search_layouts(settings, 64, limit * 2**30).fitting) for limit in (8, 16, 32, 58, 1000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_a_step_of_a_full_pipeline_takes_what_a_hand_count_says():
    # 0.6B, one pass of 4096 tokens: forward 2 x 15,728,640 + 2 x 4096 x 16 x 128 in each of 28 layers, and a
    # head of 2 x 151936 x 1024, for each token; three times that with the backward pass.
    per_token = 28 * (2 * 15_728_640 + 2 * 4096 * 2048) + 2 * 151_936 * 1024
    time = step_time(make_settings(), Machine(flops=1e12))
    assert time.compute_s == pytest.approx(3 * 4096 * per_token / 1e12)
    assert time.total_s == time.compute_s
    # The fullest of two stages without a head repeats its forward pass: four times instead of three.
    early = step_time(make_settings("32B", layout=Layout(pp=2), offset=(2, -2), micro_batch_num=2), Machine())
    alone = step_time(make_settings("32B"), Machine())
    head = 2 * 151_936 * 5120
    layer = (alone.compute_s * Machine().flops / 4096 / 3 - head) / 64
    assert early.compute_s == pytest.approx(2 * 4096 * 4 * 34 * layer / Machine().flops)
    assert early.repeated_s == pytest.approx(early.compute_s / 4)
    pipeline = step_time(make_settings("8B", layout=Layout(pp=4), micro_batch_num=6), Machine())
    assert pipeline.idle_s == pytest.approx(pipeline.compute_s / 2)  # 3 of 6


def test_too_many_devices_for_the_machine_is_the_plans_problem():
    plan = make_plan(make_settings("32B", **TWO_NODES), num_devices=8, memory_bytes=LIMIT)
    assert "needs 16 processes but worker_num is 8" in plan.problem
    assert {candidate.settings.layout.num_ranks for candidate in plan.search.too_large} == {8}


def test_what_does_not_fit_is_a_problem_with_its_size():
    plan = make_plan(make_settings("8B"), num_devices=None, memory_bytes=LIMIT)
    assert plan.problem.startswith("the fullest device needs 132.")
    assert "Does not fit" in plan_text(plan)


def test_batch_arithmetic_is_exact():
    settings = make_settings(
        layout=Layout(dp=2, pp=2),
        batch_size=3,
        micro_batch_num=4,
        accumulation=5,
        seq_length=100,
        num_samples=1000,
    )
    batch = plan_values(make_plan(settings, num_devices=None, memory_bytes=None))["batch"]
    assert batch == {"global_batch": 120, "tokens_per_step": 12_000, "steps_per_epoch": 8, "epochs": 1}


def test_the_values_are_json():
    values = plan_values(make_plan(make_settings("32B", **TWO_NODES), num_devices=None, memory_bytes=LIMIT))
    assert json.loads(json.dumps(values))["stages"][3]["total"] == values["stages"][3]["total"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("58GB", 58 * 2**30), ("58 GiB", 58 * 2**30), ("512MB", 2**29), ("1.5g", 3 * 2**29)],
)
def test_memory_is_read_as_mindspore_reads_it(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "58", "58XB", "-1GB", "0GB"])
def test_memory_without_sense_is_refused(text):
    with pytest.raises(UsageError, match="no amount of memory"):
        parse_memory(text)


def test_sizes_of_the_model_are_those_of_the_config():
    assert "8,190,735,360 parameters" in plan_text(
        make_plan(make_settings("8B"), num_devices=None, memory_bytes=None)
    )
    assert set(SIZES) >= {size for size, _, _ in RECOMMENDED}
