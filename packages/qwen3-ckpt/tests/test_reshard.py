import json

import numpy as np
import pytest
from ckpt_samples import TIED, Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_ckpt.sources.placements import make_cut, tensor_layout
from qwen3_model.checkpoints.hf_folder import open_hf_folder
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors
from qwen3_model.checkpoints.strategy import read_strategy
from qwen3_model.errors import WeightError
from qwen3_model.ranks.layout import Layout

PAIRS = {
    "one to tp2": (Spec(with_moments=True), Spec(tp=2, with_moments=True)),
    "tp2 to one": (Spec(tp=2, with_moments=True), Spec(with_moments=True)),
    "tp4 to tp2pp2": (Spec(tp=4), Spec(tp=2, pp=2)),
    "dp2tp2pp2 to tp4": (Spec(dp=2, tp=2, pp=2, dtype="BF16"), Spec(tp=4, dtype="BF16")),
    "pp4 to dp2 zero1": (
        Spec(pp=4, with_moments=True),
        Spec(dp=2, with_moments=True, shard_moments=True),
    ),
    "dp2tp2 zero1 to dp2tp2pp2 zero1": (
        Spec(dp=2, tp=2, with_moments=True, shard_moments=True),
        Spec(dp=2, tp=2, pp=2, with_moments=True, shard_moments=True),
    ),
    "removed redundancy both": (
        Spec(dp=2, tp=2, remove_redundancy=True),
        Spec(dp=4, remove_redundancy=True),
    ),
}


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def reshard(source, output, spec, *more):
    flags = ["--data-parallel", spec.dp, "--model-parallel", spec.tp, "--pipeline-stage", spec.pp]
    flags += ["--shard-optimizer"] if spec.shard_moments else []
    flags += ["--remove-redundancy"] if spec.remove_redundancy else []
    return run("reshard", source, output, *flags, *more)


def tensors_of(path):
    file = open_safetensors(path)
    return {name: (info.dtype, file.raw(name)) for name, info in file.tensors.items()}, file.metadata


@pytest.mark.parametrize("name", PAIRS)
def test_every_rank_holds_what_a_run_under_the_new_layout_would_hold(tmp_path, name):
    old, new = PAIRS[name]
    made, wanted = make_checkpoint(tmp_path / "old", old), make_checkpoint(tmp_path / "wanted", new)
    result = reshard(tmp_path / "old", tmp_path / "new", new)
    assert result.exit_code == 0, result.output
    expected = sorted(wanted.checkpoint_dir.rglob("*.safetensors"))
    assert len(expected) == new.dp * new.tp * new.pp
    for path in expected:
        found = tmp_path / "new" / "checkpoint" / path.relative_to(wanted.checkpoint_dir)
        (ours, metadata), (theirs, _) = tensors_of(found), tensors_of(path)
        assert ours.keys() == theirs.keys()
        for tensor, (dtype, value) in theirs.items():
            assert ours[tensor][0] == dtype
            np.testing.assert_array_equal(ours[tensor][1], value)
        assert metadata["remove_redundancy"] == str(new.remove_redundancy)
        meta = (path.parent / "meta.json").read_bytes()
        assert (found.parent / "meta.json").read_bytes() == meta
    assert made.checkpoint_dir.is_dir()
    result = run(
        "merge", "--mindspore-ckpt-dir", tmp_path / "new" / "checkpoint", "--src-strategy-dirs",
        tmp_path / "new" / "strategy", "--output-dir", tmp_path / "merged", "--check-replicas",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    result = run("diff", tmp_path / "old", tmp_path / "merged")
    assert result.exit_code == 0, result.output


def test_a_hugging_face_folder_becomes_a_sharded_checkpoint_and_comes_back(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(tp=2, config=TIED))
    flags = ["--mindspore-ckpt-dir", made.checkpoint_dir, "--src-strategy-dirs", made.strategy_dir]
    assert run("merge", *flags, "--output-dir", tmp_path / "hf", "--to", "hf").exit_code == 0
    result = reshard(tmp_path / "hf", tmp_path / "new", Spec(tp=4, pp=2))
    assert result.exit_code == 0, result.output
    first = open_safetensors(tmp_path / "new" / "checkpoint" / "rank_0" / "qwen3_rank_0-1_1.safetensors")
    last = open_safetensors(tmp_path / "new" / "checkpoint" / "rank_7" / "qwen3_rank_7-1_1.safetensors")
    assert "model.embed_tokens.weight" in first.tensors
    assert "model.embed_tokens.weight" in last.tensors  # a tied head needs it on the last stage
    assert (tmp_path / "new" / "config.json").is_file()
    flags = [
        "--mindspore-ckpt-dir",
        tmp_path / "new/checkpoint",
        "--src-strategy-dirs",
        tmp_path / "new/strategy",
    ]
    result = run("merge", *flags, "--output-dir", tmp_path / "back", "--to", "hf")
    assert result.exit_code == 0, result.output
    assert open_hf_folder(tmp_path / "back").config == TIED
    assert (tmp_path / "back/model.safetensors").read_bytes() == (
        tmp_path / "hf/model.safetensors"
    ).read_bytes()


def test_the_state_of_a_merged_run_and_its_step_go_along(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(tp=2, suffix="3_40"))
    flags = ["--mindspore-ckpt-dir", made.checkpoint_dir, "--src-strategy-dirs", made.strategy_dir]
    assert run("merge", *flags, "--output-dir", tmp_path / "merged").exit_code == 0
    assert reshard(tmp_path / "merged", tmp_path / "new", Spec(pp=2)).exit_code == 0
    for rank in (0, 1):
        path = tmp_path / "new" / "checkpoint" / f"rank_{rank}" / f"qwen3_rank_{rank}-3_40.safetensors"
        assert int(open_safetensors(path).raw("global_step")) == 5
        meta = json.loads((path.parent / "meta.json").read_text(encoding="utf-8"))
        assert meta == {"last_epoch": 3, "last_step": 40, "last_ckpt_file": path.name}


def test_an_offset_moves_layers_between_stages(tmp_path):
    make_checkpoint(tmp_path / "run", Spec())
    result = reshard(tmp_path / "run", tmp_path / "new", Spec(pp=2), "--offset", "1,-1")
    assert result.exit_code == 0, result.output
    stage, layouts = read_strategy(tmp_path / "new" / "strategy" / "ckpt_strategy_rank_1.ckpt")
    assert stage == 1
    assert {name.split(".")[2] for name in layouts if "layers" in name} == {"3"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model-parallel", 8], "model_parallel=8 does not divide the model's 4 key/value heads"),
        (["--pipeline-stage", 3], "4 layers do not divide over pipeline_stage=3 with offset [0, 0, 0]"),
        (["--pipeline-stage", 2, "--offset", "1,0"], "4 layers do not divide over pipeline_stage=2"),
        (["--pipeline-stage", 2, "--offset", "2,-2"], "such that each has a layer"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(tmp_path, flags, message):
    make_checkpoint(tmp_path / "run", Spec())
    result = run("reshard", tmp_path / "run", tmp_path / "new", *flags)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "new").exists()


def test_a_malformed_offset_is_a_usage_error(tmp_path):
    make_checkpoint(tmp_path / "run", Spec())
    result = run("reshard", tmp_path / "run", tmp_path / "new", "--offset", "one")
    assert result.exit_code == 2
    assert "--offset one must be whole numbers" in result.output


def test_fused_weights_and_adapters_are_cut_as_the_weights_that_they_hold():
    def maps(name, shape):
        cut = make_cut(
            [f"{ours}.mlp.up_proj.weight"], Layout(tp=2), (), shard_optimizer=False, remove_redundancy=False
        )
        return tensor_layout(TensorPlan(name, "F32", shape), cut).tensor_map

    layer, ours = "decoder.layers.0", "model.layers.0"
    assert maps(f"{layer}.self_attention.linear_qkv.weight", (64, 16)) == (0, -1)
    assert maps(f"{layer}.self_attention.linear_proj.weight", (16, 32)) == (-1, 0)
    assert maps(f"adam_m.{layer}.mlp.linear_fc1.weight", (48, 16)) == (0, -1)
    assert maps(f"{layer}.pre_mlp_layernorm.weight", (16,)) == (-1,)
    assert maps(f"{ours}.mlp.up_proj.lora_A.weight", (2, 16)) == (-1, -1)
    assert maps(f"{ours}.mlp.up_proj.lora_B.weight", (24, 2)) == (0, -1)
    assert maps(f"{ours}.mlp.down_proj.lora_A.weight", (2, 24)) == (-1, 0)
    assert maps(f"{ours}.mlp.down_proj.lora_B.weight", (16, 2)) == (-1, -1)
    assert maps("model.embed_tokens.lora_A.weight", (2, 32)) == (-1, 0)
    assert maps("adam_v.model.embed_tokens.lora_B.weight", (16, 2)) == (-1, -1)
    assert maps("lm_head.lora_B.weight", (32, 2)) == (0, -1)
    with pytest.raises(WeightError, match="nothing says how to cut it"):
        maps(f"{ours}.mlp.experts.weight", (4, 4))
