import json

import numpy as np
import pytest
from ckpt_samples import Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors, write_safetensors

NORM, UP = "model.norm.weight", "model.layers.2.mlp.up_proj.weight"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def rewrite(path, change):
    file = open_safetensors(path)
    tensors = {name: (info.dtype, np.array(file.raw(name))) for name, info in file.tensors.items()}
    change(tensors)
    write_safetensors(
        path, [(TensorPlan(n, d, v.shape), [v]) for n, (d, v) in tensors.items()], file.metadata
    )


@pytest.fixture
def made(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(tp=2, pp=2))
    result = run(
        "merge", "--mindspore-ckpt-dir", made.checkpoint_dir, "--src-strategy-dirs", made.strategy_dir,
        "--output-dir", tmp_path / "hf", "--to", "hf",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return made


def test_diff_of_a_distributed_checkpoint_and_its_export_is_empty(made, tmp_path):
    result = run("diff", tmp_path / "run", tmp_path / "hf")
    assert (result.exit_code, result.stdout) == (0, "47 tensors are equal\n")


def test_diff_names_what_differs_and_where(made, tmp_path):
    def change(tensors):
        tensors[UP][1][3, 5] += 0.5
        tensors[NORM] = ("F16", tensors[NORM][1].astype(np.float16))
        tensors["model.layers.0.mlp.down_proj.weight"] = ("F32", np.ones((2, 2), np.float32))
        del tensors["lm_head.weight"]

    rewrite(tmp_path / "hf" / "model.safetensors", change)
    result = run("diff", tmp_path / "run", tmp_path / "hf")
    assert result.exit_code == 1
    lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert lines["lm_head.weight"] == "only in the first"
    assert lines[UP] == "largest difference 0.5 at (3, 5)"
    assert lines["model.layers.0.mlp.down_proj.weight"] == "shape (16, 24) and (2, 2)"
    assert lines[NORM].startswith("largest difference")
    assert len(lines) == 4
    assert UP not in run("diff", tmp_path / "run", tmp_path / "hf", "--tolerance", 0.6).stdout


def test_verify_passes_a_sound_folder_and_names_nan(made, tmp_path):
    assert run("verify", tmp_path / "hf").exit_code == 0
    assert run("verify", tmp_path / "run").exit_code == 0
    rewrite(tmp_path / "hf" / "model.safetensors", lambda t: t[UP][1].__setitem__((0, slice(0, 3)), np.nan))
    result = run("verify", tmp_path / "hf")
    assert result.exit_code == 1
    assert f"{UP} has 3 values that are NaN or infinite" in result.stdout


def test_verify_names_weights_that_are_missing_unknown_or_of_another_shape(made, tmp_path):
    def change(tensors):
        del tensors[NORM]
        tensors["model.extra"] = ("F32", np.ones(3, np.float32))
        tensors[UP] = ("F32", np.ones((2, 2), np.float32))

    rewrite(tmp_path / "hf" / "model.safetensors", change)
    output = run("verify", tmp_path / "hf").stdout
    assert f"{NORM} is missing" in output
    assert "model.extra in model.safetensors is no weight of this model" in output
    assert f"{UP} in model.safetensors has shape (2, 2), config.json says (24, 16)" in output


def test_verify_names_every_damaged_file(made, tmp_path):
    for rank in (1, 2):
        (path,) = (made.checkpoint_dir / f"rank_{rank}").glob("*.safetensors")
        path.write_bytes(path.read_bytes()[:-4])
    result = run("verify", tmp_path / "run")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert "2 faults" in result.stderr


def test_verify_names_a_tensor_that_lies_in_two_parts(made, tmp_path):
    flags = ["--mindspore-ckpt-dir", made.checkpoint_dir, "--src-strategy-dirs", made.strategy_dir]
    assert run("merge", *flags, "--output-dir", tmp_path / "merged").exit_code == 0
    folder = tmp_path / "merged" / "1_5_ckpt_convert" / "unified_safe"
    (folder / "part1.safetensors").write_bytes((folder / "part0.safetensors").read_bytes())
    told = json.loads((folder / "param_name_map.json").read_text(encoding="utf-8"))
    told["weight_map"][NORM] = "part1.safetensors"
    (folder / "param_name_map.json").write_text(json.dumps(told), encoding="utf-8")
    result = run("verify", tmp_path / "merged")
    assert result.exit_code == 1
    assert "does not list, or lists elsewhere" in result.stdout


def test_verify_compares_with_the_manifest(made, tmp_path):
    assert run("verify", tmp_path / "hf", "--write-manifest").exit_code == 0
    assert run("verify", tmp_path / "hf").exit_code == 0
    rewrite(tmp_path / "hf" / "model.safetensors", lambda t: t[UP][1].__setitem__((0, 0), 1.0))
    result = run("verify", tmp_path / "hf")
    assert result.exit_code == 1
    assert "has another sha256 than sha256.json says" in result.stdout


def test_inspect_shows_ranks_steps_and_one_line_for_like_layers(made, tmp_path):
    result = run("inspect", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "4 ranks" in result.stdout
    assert "step 1_5: in 4 of 4 ranks" in result.stdout
    assert "  model.layers.0-3.mlp.up_proj.weight  F32 (24, 16)" in result.stdout.splitlines()


def test_a_folder_with_nothing_in_it_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    for command in ("inspect", "verify"):
        result = run(command, tmp_path / "empty")
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert f"{tmp_path / 'empty'} has no model.safetensors" in result.output


@pytest.mark.parametrize(
    "words",
    [
        ("diff", "hf", "hf", "--tolerance", "nan"),
        ("lora", "fuse", "hf", "hf", "out", "--lora-alpha", "nan"),
        ("lora", "fuse", "hf", "hf", "out", "--lora-alpha", "inf"),
        ("convert", "hf", "out", "--max-shard-size", "9" * 400),
        ("reshard", "hf", "out", "--data-parallel", "1000000000"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(made, tmp_path, words):
    """NaN is no smaller and no larger than a difference, so every difference would pass."""
    paths = {"hf": tmp_path / "hf", "out": tmp_path / "out"}
    result = run(*(paths.get(word, word) for word in words))
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()
