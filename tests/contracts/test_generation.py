"""What qwen3-train writes and what qwen3-ckpt makes of it generate alike: docs/formats/checkpoint.md."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from qwen3_ckpt.cli import main as ckpt
from qwen3_infer.cli import main as infer
from qwen3_model.checkpoints.checkpoint_files import EpochStep
from qwen3_model.config import Qwen3Config
from qwen3_model.ranks.layout import Layout, shard_slices
from qwen3_train.checkpoints.checkpoint import FloatTensor, TrainState, save_checkpoint
from qwen3_train.checkpoints.strategy_files import write_strategies
from qwen3_train.layout.stages import stage_names

RAW = {
    "model_type": "qwen3", "vocab_size": 4096, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
CONFIG = Qwen3Config.from_hf(RAW)


@pytest.fixture
def run_dir(tmp_path, demo_tokenizer_dir):
    """Return a run of four ranks, as the trainer leaves it."""
    run, layout, rng = tmp_path / "run", Layout(tp=2, pp=2), np.random.default_rng(4)
    shutil.copytree(demo_tokenizer_dir, run)
    (run / "config.json").write_text(json.dumps(CONFIG.to_hf()), "utf-8")
    whole = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in CONFIG.weight_shapes().items()
    }
    for rank in range(layout.num_ranks):
        stage, _, shard = layout.coordinates(rank)
        tensors = []
        for name in stage_names(CONFIG, layout.pp, (), stage):
            part = whole[name][shard_slices(name, whole[name].shape, tp=layout.tp, shard=shard)]
            for prefix in ("", "adam_m.", "adam_v."):
                values = np.ascontiguousarray(part)
                tensors.append(FloatTensor(prefix + name, part.shape, lambda values=values: values))
        rank_dir = run / "checkpoint" / f"rank_{rank}"
        rank_dir.mkdir(parents=True)
        save_checkpoint(rank_dir, f"qwen3_rank_{rank}", EpochStep(1, 7), TrainState(7, "data"), tensors)
        write_strategies(run, layout, CONFIG, rank)
    return run


def generated(tmp_path, name, *source):
    """Return the tokens' log-probabilities, which tell models apart, and the text."""
    arguments = [*source, "--predict-data", "Once upon a time", "--max-new-tokens", 8, "--no-do-sample",
                 "--logprobs", "--output", tmp_path / f"{name}.jsonl",
                 "--save-file", tmp_path / f"{name}.txt", "--quiet"]  # fmt: skip
    result = CliRunner().invoke(infer, ["generate", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / f"{name}.jsonl").read_text("utf-8"))
    return record["completion"], record["logprobs"]


@pytest.mark.slow
def test_a_run_generates_what_its_merged_and_converted_weights_do(run_dir, tmp_path):
    merge = [
        "merge",
        "--mindspore-ckpt-dir",
        run_dir / "checkpoint",
        "--src-strategy-dirs",
        run_dir / "strategy",
    ]
    for extra in (["--output-dir", tmp_path / "merged"], ["--output-dir", tmp_path / "hf", "--to", "hf"]):
        result = CliRunner().invoke(ckpt, [str(each) for each in (*merge, *extra)])
        assert result.exit_code == 0, result.output
    wanted = generated(tmp_path, "hf", "--pretrained-model-dir", tmp_path / "hf")
    run = generated(tmp_path, "run", "--pretrained-model-dir", run_dir)
    merged = generated(
        tmp_path, "merged", "--pretrained-model-dir", run_dir, "--load-checkpoint", tmp_path / "merged"
    )
    assert run == wanted
    assert merged == wanted
