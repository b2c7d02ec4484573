"""Adapters of PEFT: what would be added wrongly is refused."""

import json

import numpy as np
import pytest

from qwen3_model.checkpoints.adapters import pair, read_peft, stated_alpha
from qwen3_model.checkpoints.safetensors_file import TensorPlan, write_safetensors
from qwen3_model.errors import FormatError

MODULE = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(tmp_path):
    """Write an adapter of rank 2 with changes to its config; return its folder."""

    def write(**changes):
        halves = {"A": np.ones((2, 4), np.float32), "B": np.ones((4, 2), np.float32)}
        entries = [
            (TensorPlan(f"base_model.model.{MODULE}.lora_{half}.weight", "F32", values.shape), [values])
            for half, values in halves.items()
        ]
        write_safetensors(tmp_path / "adapter_model.safetensors", entries, {"format": "pt"})
        config = {"peft_type": "LORA", "lora_alpha": 4, "r": 2} | changes
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva"])
def test_a_plain_adapter_is_read(adapter, start):
    found = read_peft(adapter(init_lora_weights=start))
    assert (found.rank, found.alpha, list(found.modules)) == (2, 4.0, [MODULE])


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 0, -1, True, None, "4"])
def test_an_alpha_that_is_no_positive_number_is_refused(adapter, alpha):
    for read in (read_peft, stated_alpha):
        with pytest.raises(FormatError, match="lora_alpha is"):
            read(adapter(lora_alpha=alpha))


def test_a_config_of_another_rank_is_refused(adapter):
    with pytest.raises(FormatError, match=r"says rank 8, but .* have rank 2"):
        read_peft(adapter(r=8))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_an_adapter_whose_start_changed_the_base_is_refused(adapter, start):
    with pytest.raises(FormatError, match=start):
        read_peft(adapter(init_lora_weights=start))


def test_the_same_half_under_two_names_is_refused():
    half = np.ones((2, 4), np.float32)
    tensors = {f"{MODULE}.lora_A.weight": half, f"base_model.model.{MODULE}.lora_A.weight": half + 1}
    with pytest.raises(FormatError, match="there twice"):
        pair(tensors, 1.0)


def test_a_half_that_is_no_matrix_is_refused():
    with pytest.raises(FormatError, match="1 dimensions"):
        pair({f"{MODULE}.lora_A.weight": np.ones(4, np.float32)}, 1.0)
