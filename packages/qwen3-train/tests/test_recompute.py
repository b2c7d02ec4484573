"""Parts computed again: the same numbers in less memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from train_inputs import TINY_MODEL, counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.checkpoints.fresh_weights import init_weights
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.safetensors_file import TensorPlan
from qwen3_model.errors import ConfigError
from qwen3_train.cli import main
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.settings.model import read_model
from qwen3_train.settings.recompute import ATTENTION, SELECTED, SWIGLU, read_recompute

HERE = Path(__file__).parent


def chosen(section, num_stages=1, num_layers=3):
    recompute = read_recompute(section, num_stages)
    return [
        ["whole" if recompute.is_whole(stage, layer) else sorted(recompute.parts_of(stage, layer))
         for layer in range(num_layers)]
        for stage in range(num_stages)
    ]  # fmt: skip


BOTH = sorted(SELECTED)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, [[[], [], []], [[], [], []]]),
        ({"recompute": False, "select_recompute": False}, [[[], [], []], [[], [], []]]),
        ({"recompute": True, "select_recompute": True}, [["whole"] * 3, ["whole"] * 3]),
        ({"select_recompute": True}, [[BOTH] * 3, [BOTH] * 3]),
        ({"recompute": 2}, [["whole", "whole", []], ["whole", "whole", []]]),
        ({"recompute": [1, 0], "select_recompute": True}, [["whole", BOTH, BOTH], [BOTH] * 3]),
        ({"select_recompute": [2, 1]}, [[BOTH, BOTH, []], [BOTH, [], []]]),
        ({"select_recompute": ["mlp.mul"]}, [[[SWIGLU]] * 3, [[SWIGLU]] * 3]),
        ({"select_recompute": [r"feed_forward\.mul", r".*core_attention"]}, [[BOTH] * 3, [BOTH] * 3]),
        ({"select_recompute": {r"mlp\.activation_func\.silu": True, "self_attn.core_attention": [1, 0]}},
         [[BOTH, [SWIGLU], [SWIGLU]], [[SWIGLU]] * 3]),
        ({"select_recompute": {"self_attn.core_attention": False}}, [[[], [], []], [[], [], []]]),
    ],
)  # fmt: skip
def test_keys_of_mindformers_choose_layers_and_parts(section, expected):
    assert chosen(section, num_stages=2) == expected


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"recompute": [1]}, r"recompute=\[1\] has 1 numbers for 2 pipeline stages"),
        ({"recompute": "all"}, "recompute='all' must be True, False, a number of layers"),
        ({"recompute": -1}, "recompute=-1 must be"),
        ({"select_recompute": [[1, 0], [0, 1]]}, "must be True, False, a number"),
        (
            {"select_recompute": ["mlp.dance"]},
            "'mlp.dance' is no part .* use self_attn.core_attention, mlp.mul",
        ),
        ({"select_recompute": ["mlp.("]}, "is no regular expression"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(section, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read_recompute(section, 2)


def test_only_what_is_alike_in_all_layers_has_a_kind():
    sections = [
        {},
        {"select_recompute": True},
        {"recompute": True},
        {"recompute": 1},
        {"select_recompute": ["mlp.mul"]},
    ]
    assert [read_recompute(section, 1).kind for section in sections] == [
        "none",
        "selective",
        "full",
        None,
        None,
    ]
    assert ATTENTION in SELECTED


@pytest.fixture(scope="module")
def measured():
    """Return losses, norms and peak bytes of each kind, each in a process of its own."""
    found = {}
    for kind in ("none", "selective", "full"):
        done = subprocess.run(
            [sys.executable, HERE / "recompute_memory.py", kind],
            capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        *numbers, peak = done.stdout.split()
        found[kind] = numbers, int(peak)
    return found


@pytest.mark.slow
def test_recomputation_changes_no_number(measured):
    assert len(measured["none"][0]) == 6
    for kind in ("selective", "full"):
        got, wanted = ([float(number) for number in measured[each][0]] for each in (kind, "none"))
        assert got == pytest.approx(wanted, rel=1e-6)  # derivatives in another order


@pytest.mark.slow
def test_recomputation_takes_less_memory(measured):
    none, selective, full = (measured[kind][1] for kind in ("none", "selective", "full"))
    # Of 4 layers of 512 tokens: probabilities 8 x 512 x 512 floats, silu and product 512 x 1024 each.
    spared = 4 * (8 * 512 * 512 + 2 * 512 * 1024) * 4
    # On a CPU whole layers are these two parts.
    for less in (selective, full):
        assert none - less > 0.5 * spared


@pytest.mark.slow
def test_adapters_on_separate_documents_train_alike_with_recomputation(tmp_path):
    prefix = write_tokens(tmp_path / "tiny_text_document", counting_documents(60), eod_id=1)
    base = tmp_path / "base"
    base.mkdir()
    config = read_model(TINY_MODEL, None)
    (base / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    weights = init_weights(config, 5)
    write_hf_weights(base, [(TensorPlan(name, "F32", value.shape), [value]) for name, value in weights])
    curves = {}
    for kind, section in (("none", {}), ("full", {"recompute": True})):
        values = tiny_run(
            tmp_path / kind, prefix, run_mode="finetune", pretrained_model_dir=str(base),
            recompute_config=section,
            # Down has no adapter and is recomputed with the product before it; up has one.
            model__model_config__pet_config={"lora_rank": 2, "target_modules": "linear_qkv|up_proj"},
            train_dataset__data_loader__config__reset_attention_mask=True,
            train_dataset__data_loader__config__reset_position_ids=True,
        )  # fmt: skip
        path = write_yaml(tmp_path / f"{kind}.yaml", values)
        result = CliRunner().invoke(main, ["launch", "--config", str(path)])
        assert result.exit_code == 0, result.output
        lines = read_metrics(tmp_path / kind / "metrics.jsonl")
        curves[kind] = [[line["loss"], line["grad_norm"]] for line in lines]
    assert len(curves["none"]) == 6
    np.testing.assert_allclose(curves["full"], curves["none"], rtol=1e-5)
