import json

import numpy as np
import pytest
from ckpt_samples import TIED, TINY, Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.hf_folder import open_hf_folder
from qwen3_model.checkpoints.safetensors_file import (
    NUMPY_DTYPES,
    TensorPlan,
    from_float32,
    open_safetensors,
    write_safetensors,
)
from qwen3_model.checkpoints.weight_files import open_checkpoint


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def whole(folder):
    """Read every tensor."""
    return {
        name: tensor.rows.read(0, tensor.rows.num_rows).view(NUMPY_DTYPES[tensor.plan.dtype])
        for name, tensor in open_checkpoint(folder).tensors.items()
    }


@pytest.fixture
def merged(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(tp=2, pp=2, with_moments=True))
    (tmp_path / "run" / "tokenizer.json").write_text("{}", encoding="utf-8")
    result = run(
        "merge", "--mindspore-ckpt-dir", made.checkpoint_dir, "--src-strategy-dirs", made.strategy_dir,
        "--output-dir", tmp_path / "merged",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return made


def weights_of(made):
    return {name: value for name, value in made.whole.items() if not name.startswith("adam_")}


def test_a_merged_checkpoint_becomes_a_hugging_face_folder(merged, tmp_path):
    result = run("convert", tmp_path / "merged", tmp_path / "hf")
    assert result.exit_code == 0, result.output
    folder = open_hf_folder(tmp_path / "hf")
    assert folder.config.dtype == "float32"
    assert set(folder.tensors.names()) == weights_of(merged).keys()
    for name, value in weights_of(merged).items():
        np.testing.assert_array_equal(folder.raw(name), value)
    assert (tmp_path / "hf" / "tokenizer.json").read_text(encoding="utf-8") == "{}"


def test_merging_straight_to_hugging_face_gives_the_same_bytes(merged, tmp_path):
    run("convert", tmp_path / "merged", tmp_path / "hf")
    result = run(
        "merge", "--mindspore-ckpt-dir", merged.checkpoint_dir, "--src-strategy-dirs", merged.strategy_dir,
        "--output-dir", tmp_path / "direct", "--to", "hf",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "step 1_5: 47 tensors, 47,808 bytes" in result.stdout  # the moments are not part of it
    for path in (tmp_path / "hf").iterdir():
        assert path.read_bytes() == (tmp_path / "direct" / path.name).read_bytes()


@pytest.mark.parametrize("qkv", ["grouped", "contiguous"])
@pytest.mark.parametrize("mlp", ["interleaved", "contiguous"])
def test_mindformers_fused_rows_are_where_its_formula_says(merged, tmp_path, qkv, mlp):
    run("convert", tmp_path / "merged", tmp_path / "hf")
    result = run(
        "convert",
        tmp_path / "hf",
        tmp_path / "mf",
        "--to",
        "mindformers",
        "--target-qkv",
        qkv,
        "--target-mlp",
        mlp,
    )
    assert result.exit_code == 0, result.output
    fused, plain = whole(tmp_path / "mf" / "unified_safe"), weights_of(merged)
    c = TINY
    for layer in range(c.num_layers):
        q, k, v = (plain[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkv")
        gate, up = (plain[f"model.layers.{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up"))
        groups = [part.reshape(c.num_kv_heads, -1, c.hidden_size) for part in (q, k, v)]
        grouped = np.concatenate(groups, axis=1).reshape(-1, c.hidden_size)
        expected = grouped if qkv == "grouped" else np.concatenate([q, k, v])
        np.testing.assert_array_equal(
            fused[f"decoder.layers.{layer}.self_attention.linear_qkv.weight"], expected
        )
        woven = np.stack([gate, up], axis=1).reshape(-1, c.hidden_size)
        expected = woven if mlp == "interleaved" else np.concatenate([gate, up])
        np.testing.assert_array_equal(fused[f"decoder.layers.{layer}.mlp.linear_fc1.weight"], expected)
    result = run("convert", tmp_path / "mf", tmp_path / "back", "--source-qkv", qkv, "--source-mlp", mlp)
    assert result.exit_code == 0, result.output
    for path in (tmp_path / "hf").iterdir():
        assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes()


def test_another_dtype_rounds_to_nearest_and_is_stated_in_the_config(merged, tmp_path):
    result = run("convert", tmp_path / "merged", tmp_path / "hf", "--dtype", "bf16")
    assert result.exit_code == 0, result.output
    folder = open_hf_folder(tmp_path / "hf")
    assert folder.config.dtype == "bfloat16"
    for name, value in weights_of(merged).items():
        np.testing.assert_array_equal(folder.raw(name), from_float32(value, "BF16"))


def test_a_tied_model_loses_its_repeated_head(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(config=TIED))
    result = run(
        "merge", "--mindspore-ckpt-dir", made.checkpoint_dir, "--to", "hf", "--output-dir", tmp_path / "hf"
    )
    assert result.exit_code == 0, result.output
    assert "lm_head.weight" not in open_hf_folder(tmp_path / "hf").tensors


def test_shards_respect_the_size(merged, tmp_path):
    run("convert", tmp_path / "merged", tmp_path / "hf", "--max-shard-size", 8000)
    files = sorted((tmp_path / "hf").glob("model-*-of-*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < 8000 + 2000 for path in files)
    assert set(open_hf_folder(tmp_path / "hf").tensors.names()) == weights_of(merged).keys()


def test_a_weight_that_is_missing_is_named_and_nothing_is_written(merged, tmp_path):
    run("convert", tmp_path / "merged", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text(encoding="utf-8")) | {
        "num_hidden_layers": 5
    }
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = run("convert", tmp_path / "hf", tmp_path / "out")
    assert result.exit_code == 1
    assert "model.layers.4.input_layernorm.weight is missing" in result.output
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept_without_force_and_replaced_with_it(merged, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").write_text("mine", encoding="utf-8")
    result = run("convert", tmp_path / "merged", tmp_path / "hf")
    assert result.exit_code == 1
    assert "already exists" in result.output
    assert (tmp_path / "hf" / "mine").read_text(encoding="utf-8") == "mine"
    assert run("convert", tmp_path / "merged", tmp_path / "hf", "--force").exit_code == 0
    assert not (tmp_path / "hf" / "mine").exists()
    assert open_hf_folder(tmp_path / "hf").config == TINY


def test_without_a_config_the_remedy_is_named(merged, tmp_path):
    (tmp_path / "alone").mkdir()
    part = tmp_path / "merged" / "1_5_ckpt_convert" / "unified_safe" / "part0.safetensors"
    (tmp_path / "alone" / "deep").mkdir()
    (tmp_path / "alone" / "deep" / "deeper").mkdir()
    target = tmp_path / "alone" / "deep" / "deeper" / "x.safetensors"
    target.write_bytes(part.read_bytes())
    result = run("convert", target, tmp_path / "hf")
    assert result.exit_code == 1
    assert "name its folder with --hf-dir" in result.output
    assert "Traceback" not in result.output


def test_a_tied_models_head_must_be_its_embedding(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(config=TINY))
    (tmp_path / "run" / "config.json").write_text(json.dumps(TIED.to_hf()), encoding="utf-8")
    flags = ["--mindspore-ckpt-dir", made.checkpoint_dir, "--to", "hf", "--output-dir", tmp_path / "hf"]
    result = run("merge", *flags)
    assert result.exit_code == 1
    assert "config.json ties the head to the embedding, but lm_head.weight differs from it" in result.output


def test_a_distributed_checkpoint_of_fused_weights_merges_straight_to_hugging_face(merged, tmp_path):
    assert run("convert", tmp_path / "merged", tmp_path / "hf").exit_code == 0
    fused = ["convert", tmp_path / "hf", tmp_path / "mf", "--to", "mindformers", "--target-mlp", "contiguous"]
    assert run(*fused).exit_code == 0
    flags = ["--model-parallel", 2, "--pipeline-stage", 2, "--hf-dir", tmp_path / "hf"]
    result = run("reshard", tmp_path / "mf", tmp_path / "ranks", *flags)
    assert result.exit_code == 0, result.output
    flags = [
        "--mindspore-ckpt-dir", tmp_path / "ranks" / "checkpoint", "--src-strategy-dirs",
        tmp_path / "ranks" / "strategy", "--source-mlp", "contiguous", "--to", "hf",
    ]  # fmt: skip
    result = run("merge", *flags, "--output-dir", tmp_path / "back")
    assert result.exit_code == 0, result.output
    weights = [tmp_path / folder / "model.safetensors" for folder in ("hf", "back")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_merging_to_hugging_face_in_another_dtype_equals_merging_and_converting(merged, tmp_path):
    assert run("convert", tmp_path / "merged", tmp_path / "two", "--dtype", "bf16").exit_code == 0
    flags = ["--mindspore-ckpt-dir", merged.checkpoint_dir, "--src-strategy-dirs", merged.strategy_dir]
    flags += ["--output-dir", tmp_path / "one", "--dtype", "bf16"]
    result = run("merge", *flags)
    assert result.exit_code == 2
    assert "--dtype goes with --to hf" in result.output
    assert run("merge", *flags, "--to", "hf").exit_code == 0
    for path in (tmp_path / "two").iterdir():
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()


@pytest.mark.parametrize(("size", "files"), [("10KB", 5), ("9.8 KiB", 5), ("20000", 3), ("5GB", 1)])
def test_the_largest_file_has_a_size_with_a_unit(merged, tmp_path, size, files):
    result = run("convert", tmp_path / "merged", tmp_path / "hf", "--max-shard-size", size)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) == files
    assert open_hf_folder(tmp_path / "hf").config == TINY


def test_a_size_that_is_none_is_a_usage_error(merged, tmp_path):
    result = run("convert", tmp_path / "merged", tmp_path / "hf", "--max-shard-size", "5 apples")
    assert result.exit_code == 2
    assert "is no size such as 5GB" in result.output


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        ("bf16", np.nan, "Note: model.norm.weight was written with values that are NaN or infinite\n"),
        ("bf16", -np.inf, "Note: model.norm.weight was written with values that are NaN or infinite\n"),
        (
            "fp16",
            1e5,
            "Note: model.norm.weight was written with values that are NaN or infinite; a value above",
        ),
        ("fp16", 65000, ""),
        ("bf16", -3e38, ""),
    ],
)
def test_what_a_cast_makes_or_finds_not_finite_is_noted(tmp_path, dtype, value, said):
    made = make_checkpoint(tmp_path / "run", Spec(dtype="F32"))
    path = made.checkpoint_dir / "rank_0" / "qwen3_rank_0-1_5.safetensors"
    file = open_safetensors(path)
    tensors = {name: (info, file.raw(name)) for name, info in file.tensors.items()}
    tensors["model.norm.weight"][1][3] = value
    plans = [(TensorPlan(name, info.dtype, info.shape), [array]) for name, (info, array) in tensors.items()]
    write_safetensors(path, plans, file.metadata)
    flags = ["--mindspore-ckpt-dir", tmp_path / "run", "--output-dir", tmp_path / "hf", "--to", "hf"]
    result = run("merge", *flags, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    assert (said in result.stderr) if said else ("NaN" not in result.stderr)
