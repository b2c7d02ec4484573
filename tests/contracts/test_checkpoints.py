"""What qwen3-train writes is what qwen3-ckpt reads, and the other way round: docs/formats/checkpoint.md."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from qwen3_ckpt.cli import main as ckpt
from qwen3_model.checkpoints.checkpoint_files import EpochStep, choose_checkpoint
from qwen3_model.checkpoints.hf_folder import open_hf_folder
from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.config import Qwen3Config
from qwen3_model.ranks.layout import Layout, shard_slices
from qwen3_train.checkpoints.checkpoint import (
    FloatTensor,
    TrainState,
    read_state,
    save_checkpoint,
)
from qwen3_train.checkpoints.strategy_files import write_strategies
from qwen3_train.layout.stages import stage_names

CONFIG = Qwen3Config.from_hf({
    "model_type": "qwen3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
})  # fmt: skip
LAYOUTS = [Layout(), Layout(tp=2), Layout(pp=2), Layout(dp=2, tp=2, pp=2)]


def whole_tensors():
    """Return weights and moments."""
    rng = np.random.default_rng(5)
    shapes = CONFIG.weight_shapes().items()
    return {
        prefix + name: rng.standard_normal(shape, dtype=np.float32)
        for name, shape in shapes
        for prefix in ("", "adam_m.", "adam_v.")
    }


def write_run(run_dir, layout, whole):
    """Write what every rank of a run writes."""
    for rank in range(layout.num_ranks):
        stage, _, shard = layout.coordinates(rank)
        tensors = []
        for name in stage_names(CONFIG, layout.pp, (), stage):
            for prefix in ("", "adam_m.", "adam_v."):
                value = whole[prefix + name]
                part = value[shard_slices(name, value.shape, tp=layout.tp, shard=shard)]
                tensors.append(
                    FloatTensor(prefix + name, part.shape, lambda part=part: np.ascontiguousarray(part))
                )
        state = TrainState(7, "fingerprint")
        rank_dir = run_dir / "checkpoint" / f"rank_{rank}"
        rank_dir.mkdir(parents=True)
        save_checkpoint(rank_dir, f"qwen3_rank_{rank}", EpochStep(1, 7), state, tensors)
        write_strategies(run_dir, layout, CONFIG, rank)
    (run_dir / "config.json").write_text(json.dumps(CONFIG.to_hf()), encoding="utf-8")


def run(*arguments):
    result = CliRunner().invoke(ckpt, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_trainers_checkpoint_becomes_the_model(tmp_path, layout):
    whole = whole_tensors()
    write_run(tmp_path / "run", layout, whole)
    flags = [
        "--mindspore-ckpt-dir",
        tmp_path / "run/checkpoint",
        "--src-strategy-dirs",
        tmp_path / "run/strategy",
    ]
    run("merge", *flags, "--output-dir", tmp_path / "hf", "--to", "hf", "--check-replicas")
    folder = open_hf_folder(tmp_path / "hf")
    for name in CONFIG.weight_shapes():
        np.testing.assert_array_equal(folder.raw(name), whole[name])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_trainer_finds_its_tensors_in_a_resharded_checkpoint(tmp_path, layout):
    whole = whole_tensors()
    write_run(tmp_path / "run", Layout(tp=2), whole)
    write_run(tmp_path / "wanted", layout, whole)
    flags = ["--data-parallel", layout.dp, "--model-parallel", layout.tp, "--pipeline-stage", layout.pp]
    run("reshard", tmp_path / "run", tmp_path / "new", *flags)
    found, passed_over = choose_checkpoint(tmp_path / "new", layout.num_ranks, None)
    wanted, _ = choose_checkpoint(tmp_path / "wanted", layout.num_ranks, None)
    assert not passed_over
    for rank, path in found.items():
        ours, theirs = open_safetensors(path), open_safetensors(wanted[rank])
        assert path.name == wanted[rank].name
        assert read_state(ours) == read_state(theirs)
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name in theirs.tensors:
            np.testing.assert_array_equal(ours.raw(name), theirs.raw(name))
