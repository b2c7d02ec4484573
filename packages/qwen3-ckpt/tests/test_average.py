"""The mean of models, and checkpoints without their optimizer, against numpy."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ckpt_samples import TIED, TINY, Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.hf_folder import write_hf_weights
from qwen3_model.checkpoints.safetensors_file import (
    TensorPlan,
    from_float32,
    open_safetensors,
    to_float32,
    write_safetensors,
)
from qwen3_model.checkpoints.strategy import TensorLayout, write_strategy


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


def write(folder: Path, seed: int, dtype: str = "F32", config=TINY) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    raw = {
        n: from_float32(rng.standard_normal(s).astype(np.float32), dtype)
        for n, s in config.weight_shapes().items()
    }
    write_hf_weights(folder, [(TensorPlan(n, dtype, v.shape), [v]) for n, v in raw.items()], 10_000)
    return {name: to_float32(values, dtype) for name, values in raw.items()}


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    file = open_safetensors(folder / "model.safetensors")
    return {name: file.float32(name) for name in file.tensors}


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("shares", [None, (0.5, 0.25, 0.25), (2, 1, -1)])
def test_the_mean_is_the_sum_of_shares(tmp_path, dtype, shares):
    models = [write(tmp_path / str(i), i, dtype) for i in range(3)]
    flags = [word for share in shares or () for word in ("--weight", share)]
    result = run("average", tmp_path / "0", tmp_path / "1", tmp_path / "2", tmp_path / "mean", *flags)
    assert result.exit_code == 0, result.output
    total = sum(shares) if shares else 3
    for name, found in weights_of(tmp_path / "mean").items():
        parts = zip(models, shares or (1, 1, 1), strict=True)
        mean = sum(share / total * model[name].astype(np.float64) for model, share in parts)
        expected = to_float32(from_float32(mean.astype(np.float32), dtype), dtype)
        np.testing.assert_array_equal(found, expected, err_msg=name)
    assert run("verify", tmp_path / "mean").exit_code == 0


def test_the_mean_of_one_model_in_several_forms_is_that_model(tmp_path):
    made = make_checkpoint(tmp_path / "run", Spec(tp=2, pp=2, with_moments=True))
    assert run("convert", tmp_path / "run", tmp_path / "hf").exit_code == 0
    (rank_file,) = (made.checkpoint_dir / "rank_0").glob("*.safetensors")
    result = run(
        "average", tmp_path / "run", tmp_path / "hf", rank_file, tmp_path / "mean", "--dtype", "fp32"
    )
    assert result.exit_code == 0, result.output
    assert run("diff", tmp_path / "hf", tmp_path / "mean", "--tolerance", "1e-6").exit_code == 0


def test_an_average_that_cannot_be_meant_is_refused(tmp_path):
    write(tmp_path / "a", 1)
    write(tmp_path / "tied", 2, config=TIED)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for words, code, sentence in (
        ((tmp_path / "a", tmp_path / "out"), 2, "give two or more sources"),
        ((tmp_path / "a", tmp_path / "b", tmp_path / "out", "--weight", "1"), 2, "once a source, 2 times"),
        (
            (tmp_path / "a", tmp_path / "b", tmp_path / "out", "--weight", "1", "--weight", "-1"),
            2,
            "other than 0",
        ),
        (
            (tmp_path / "a", tmp_path / "tied", tmp_path / "out"),
            1,
            f"{tmp_path / 'tied'}: the weights are not",
        ),
        ((tmp_path / "b", tmp_path / "tied", tmp_path / "a", "--force"), 1, "is not|the weights are not"),
    ):
        result = run("average", *words)
        assert result.exit_code == code, result.output
        assert re.search(sentence, result.output), result.output
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_its_optimizer_begins_another_run(tmp_path):
    make_checkpoint(tmp_path / "run", Spec(tp=2, with_moments=True))
    words = ("reshard", tmp_path / "run", tmp_path / "out", "--data-parallel", 2, "--drop-optimizer")
    assert run(*words).exit_code == 0
    for path in (tmp_path / "out" / "checkpoint").rglob("*.safetensors"):
        assert set(open_safetensors(path).tensors) == set(TINY.weight_shapes())
    strategies = list((tmp_path / "out" / "strategy").iterdir())
    assert len(strategies) == 2
    assert all(b"adam_m" not in path.read_bytes() for path in strategies)
    assert run("convert", tmp_path / "run", tmp_path / "a").exit_code == 0
    assert run("convert", tmp_path / "out", tmp_path / "b").exit_code == 0
    assert (
        run("diff", tmp_path / "a", tmp_path / "b").stdout
        == f"{len(TINY.weight_shapes())} tensors are equal\n"
    )


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda t: None, "3 tensors are equal"),
        (lambda t: t.update(a=t["a"] + 1), "1 of 3 tensors differ, in values"),
        (lambda t: t.update(a=t["a"].astype(np.float16)),
         "1 of 3 tensors differ, in their types alone: the values agree"),
        (lambda t: t.update(a=t["a"][:1]), "1 of 3 tensors differ, in shapes"),
        (lambda t: (t.pop("a"), t.update(b=t["b"] + 1)), "2 of 3 tensors differ, in names, values"),
        (lambda t: [t.update({f"x.{n}": t.pop(n)}) for n in list(t)],
         "6 of 6 tensors differ: the two have no tensor in common, so their names are of different forms or "
         "models"),
    ],
)  # fmt: skip
def test_diff_ends_with_a_verdict(tmp_path, change, verdict):
    tensors = {name: np.ones((2, 2), np.float32) for name in "abc"}
    for name in ("first", "second"):
        if name == "second":
            change(tensors)
        kinds = {"float32": "F32", "float16": "F16"}
        entries = [(TensorPlan(n, kinds[str(v.dtype)], v.shape), [v]) for n, v in tensors.items()]
        write_safetensors(tmp_path / f"{name}.safetensors", entries, {})
    result = run("diff", tmp_path / "first.safetensors", tmp_path / "second.safetensors")
    assert (result.stdout + result.stderr).splitlines()[-1] == verdict


@pytest.mark.parametrize("kind", ["index", "map"])
def test_verify_compares_the_total_size(tmp_path, kind):
    write(tmp_path / "hf", 1)
    folder, name = tmp_path / "hf", "model.safetensors.index.json"
    if kind == "map":
        assert run("convert", tmp_path / "hf", tmp_path / "ours", "--to", "ours").exit_code == 0
        folder, name = tmp_path / "ours", "unified_safe/param_name_map.json"
    assert run("verify", folder).exit_code == 0
    told = json.loads((folder / name).read_text(encoding="utf-8"))
    told["metadata"]["total_size"] += 4
    (folder / name).write_text(json.dumps(told), encoding="utf-8")
    result = run("verify", folder)
    assert result.exit_code == 1
    assert "states a total_size of" in result.output


UNDER_LIMIT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
from qwen3_ckpt.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("command", ["merge", "verify", "inspect", "diff", "reshard"])
def test_more_ranks_than_files_may_be_open(tmp_path, command):
    """The limit leaves less than a descriptor a rank; what holds 128 of them stays below 256."""
    ranks = 300
    layout = TensorLayout(dev_matrix=(ranks,), tensor_map=(0, -1))
    name = "model.layers.0.mlp.up_proj.weight"
    whole = np.arange(ranks * 2, dtype=np.float32).reshape(ranks, 2)
    write_strategy(tmp_path / "strategy" / "ckpt_strategy_rank_0.ckpt", 0, {name: layout})
    for rank in range(ranks):
        path = tmp_path / "checkpoint" / f"rank_{rank}" / f"x_rank_{rank}-1_1.safetensors"
        path.parent.mkdir(parents=True)
        write_safetensors(path, [(TensorPlan(name, "F32", (1, 2)), [whole[rank : rank + 1]])], {})
        (tmp_path / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(
            (tmp_path / "strategy" / "ckpt_strategy_rank_0.ckpt").read_bytes()
        )
    words = {
        "merge": ["--mindspore-ckpt-dir", tmp_path / "checkpoint", "--output-dir", tmp_path / "out"],
        "reshard": [tmp_path, tmp_path / "out"],
        "diff": [tmp_path, tmp_path],
    }.get(command, [tmp_path])
    done = subprocess.run(
        [sys.executable, "-c", UNDER_LIMIT, "200", command, *map(str, words)],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if command == "merge":
        (part,) = (tmp_path / "out").rglob("part0.safetensors")
        np.testing.assert_array_equal(open_safetensors(part).raw(name), whole)
