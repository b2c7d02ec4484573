import re
from dataclasses import replace

import pytest

from qwen3_model.command.run_config import RunConfig
from qwen3_model.config import SIZES
from qwen3_model.errors import ConfigError
from qwen3_model.ranks.layout import Layout
from qwen3_train.layout.checks import batch_problems, layout_problems, process_problems
from qwen3_train.layout.stages import balanced_offset, stage_layers, stage_names, stage_weights
from qwen3_train.settings.layout import read_layout

BIG = SIZES["32B"]


def problems(config=BIG, seq_length=4096, offset=(), micro_batch_num=4, **layout):
    return layout_problems(
        config, Layout(**layout), seq_length=seq_length, offset=offset, micro_batch_num=micro_batch_num
    )


@pytest.mark.parametrize(
    "layout",
    [
        {"tp": 8},
        {"tp": 4, "pp": 4},
        {"tp": 4, "pp": 4, "offset": (-1, -1, 1, 1)},
        {"dp": 3, "tp": 2, "pp": 2},
    ],
)
def test_a_layout_that_divides_has_no_problem(layout):
    assert problems(**layout) == []


def test_every_size_that_does_not_divide_is_named_with_a_remedy():
    odd = replace(BIG, num_heads=60, num_kv_heads=4, vocab_size=151937, intermediate_size=25602)
    found = problems(odd, tp=8)
    assert [sentence.split("=")[0] for sentence in found] == [
        "num_attention_heads", "num_key_value_heads", "vocab_size", "intermediate_size",
    ]  # fmt: skip
    assert found[1] == (
        "num_key_value_heads=4 does not divide by parallel_config.model_parallel=8; use one of 1, 2, 4"
    )


def test_sequence_parallel_needs_a_sequence_that_divides():
    assert "seq_length=4094" in problems(tp=4, sequence_parallel=True, seq_length=4094)[0]
    assert problems(tp=4, sequence_parallel=False, seq_length=4094) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"pp": 3}, "num_hidden_layers=64 does not divide by parallel_config.pipeline_stage=3"),
        ({"pp": 65, "micro_batch_num": 65}, "exceeds num_hidden_layers=64"),
        ({"pp": 4, "offset": (1, -1)}, "offset=[1, -1] has 2 numbers but parallel_config.pipeline_stage=4"),
        ({"pp": 4, "offset": (1, 0, 0, 0)}, "so the stages hold 65 layers of num_hidden_layers=64"),
        ({"pp": 2, "offset": (-32, 32)}, "leaves a stage without a layer (32 before the shift)"),
        ({"pp": 8, "micro_batch_num": 4}, "micro_batch_num=4 is below parallel_config.pipeline_stage=8"),
    ],
)
def test_a_pipeline_that_cannot_run_is_one_sentence(arguments, sentence):
    found = problems(**arguments)
    assert len(found) == 1
    assert sentence in found[0]


def test_all_problems_of_a_layout_are_collected():
    assert len(problems(tp=16, pp=5, micro_batch_num=2)) == 3  # kv heads, layers, micro-batches


def test_processes_and_places_must_be_equal():
    assert process_problems(Layout(dp=2, tp=4), 8) == []
    assert process_problems(Layout(dp=2, tp=4), None) == []
    assert "needs 8 processes but worker_num is 16" in process_problems(Layout(dp=2, tp=4), 16)[0]


def test_an_epoch_must_have_samples_for_a_step():
    assert batch_problems(2, 4, 8, 64) == []
    assert "a step takes 64 samples" in batch_problems(2, 4, 8, 63)[0]
    assert batch_problems(2, 0, 1, 10) == ["batch_size=0 must be at least 1"]


@pytest.mark.parametrize(("num_layers", "pp"), [(64, 4), (28, 8), (5, 4), (7, 4), (3, 3), (10, 4)])
def test_a_balanced_offset_uses_every_layer_once_and_differs_by_one(num_layers, pp):
    layers = stage_layers(num_layers, pp, balanced_offset(num_layers, pp))
    assert [layer for part in layers for layer in part] == list(range(num_layers))
    assert max(map(len, layers)) - min(map(len, layers)) <= 1


def test_an_odd_layer_goes_to_an_inner_stage():
    assert balanced_offset(9, 4) == (0, 1, 0, 0)


def test_stages_hold_each_weight_once_and_a_tied_embedding_twice():
    for name in ("32B", "0.6B"):
        config = SIZES[name]
        held = [weight for stage in range(4) for weight in stage_names(config, 4, (), stage)]
        twice = [weight for weight in set(held) if held.count(weight) == 2]
        assert set(held) == set(config.weight_shapes())
        assert twice == (["model.embed_tokens.weight"] if config.tie_word_embeddings else [])


def test_shards_of_a_stage_add_up_to_its_weights():
    config, layout = SIZES["4B"], Layout(tp=4, pp=2)
    full = config.weight_shapes()
    for name, shape in stage_weights(config, layout, (), 1).items():
        rows, columns = full[name][0], full[name][-1]
        assert shape in (full[name], (rows // 4, columns), (rows, columns // 4))
        assert (shape == full[name]) == name.endswith("norm.weight")


def test_context_parallelism_needs_two_chunks_of_the_sequence_for_each_rank():
    assert problems(tp=4, dp=4, cp=4, seq_length=4096) == []
    assert "seq_length=4092 does not divide by 2 x parallel_config.context_parallel=4" in "".join(
        problems(dp=4, cp=4, seq_length=4092)
    )
    assert "seq_length=40 / parallel_config.context_parallel 4 does not divide" in "".join(
        problems(dp=4, cp=4, tp=8, sequence_parallel=True, seq_length=40)
    )
    assert process_problems(Layout(dp=8, cp=4), 4)[0].startswith(
        "parallel_config.data_parallel=2 x parallel_config.context_parallel=4 x "
    )


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"context_parallel": 2, "context_parallel_algo": "ulysses_cp"}, "use colossalai_cp, which gathers"),
        ({"context_parallel": 0}, "context_parallel=0 must be at least 1"),
        ({"pipeline_stage": 2, "interleave": 2}, "pp_interleave_num=2 is not implemented"),
    ],
)
def test_what_is_not_implemented_is_refused_in_a_sentence(keys, sentence):
    model = {"model_config": {"pp_interleave_num": keys.pop("interleave", 1)}}
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        read_layout(RunConfig({"use_parallel": True, "parallel_config": keys, "model": model}, ()))


def test_replicas_of_weights_are_those_of_samples_times_those_of_a_sequence():
    keys = {"data_parallel": 3, "context_parallel": 2, "context_parallel_algo": "colossalai_cp"}
    layout = read_layout(RunConfig({"use_parallel": True, "parallel_config": keys}, ()))
    assert (layout.dp, layout.cp, layout.data_parallel, layout.num_ranks) == (6, 2, 3, 6)
    with pytest.raises(ConfigError, match="divide dp=3"):
        Layout(dp=3, cp=2)
