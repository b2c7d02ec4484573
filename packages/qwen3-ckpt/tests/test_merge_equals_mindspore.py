"""The oracle: MindSpore's own `unified_safetensors` on the same files."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from ckpt_samples import TIED, TINY, Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.checkpoints.strategy import read_strategy

SPECS = {
    "one": Spec(),
    "dp2": Spec(dp=2),
    "tp2": Spec(tp=2),
    "tp4": Spec(tp=4, with_moments=True),
    "pp2": Spec(pp=2),
    "pp4tp2": Spec(pp=4, tp=2),
    "tp2pp2bf16": Spec(tp=2, pp=2, dtype="BF16"),
    "dp2tp2pp2": Spec(dp=2, tp=2, pp=2, with_moments=True),
    "dp2tp2removed": Spec(dp=2, tp=2, with_moments=True, remove_redundancy=True),
    "dp2zero1": Spec(dp=2, with_moments=True, shard_moments=True),
    "dp2tp2zero1": Spec(dp=2, tp=2, with_moments=True, shard_moments=True),
    "dp2tp2zero1all": Spec(dp=2, tp=2, with_moments=True, shard_moments=True, pieces_as_replicas=True),
    "tp2pp2tied": Spec(tp=2, pp=2, config=TIED, with_moments=True),
    "dp2pp2zero1fp16": Spec(dp=2, pp=2, with_moments=True, shard_moments=True, dtype="F16"),
}
ORACLE = """
import json, sys, types
import mindspore as ms
from mindspore.parallel import transform_safetensors
# After each file it waits until half of the machine's memory is free, which other processes may never allow.
transform_safetensors.psutil = types.SimpleNamespace(virtual_memory=lambda: types.SimpleNamespace(percent=0))
for run, out, redundant, suffix in json.load(open(sys.argv[1])):
    ms.parallel.merge_pipeline_strategys(f"{run}/strategy", f"{out}/merged.ckpt")
    ms.unified_safetensors(f"{run}/checkpoint", f"{out}/merged.ckpt", f"{out}/unified",
                           merge_with_redundancy=redundant, file_suffix=suffix)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Merge every layout with MindSpore, in one process since its import takes seconds."""
    root = tmp_path_factory.mktemp("oracle")
    jobs, made = [], {}
    for name, spec in SPECS.items():
        made[name] = make_checkpoint(root / name, spec)
        (root / f"{name}_out").mkdir()
        jobs.append([str(root / name), str(root / f"{name}_out"), not spec.remove_redundancy, spec.suffix])
    (root / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", ORACLE, root / "jobs.json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root, made


def read_unified(folder):
    weight_map = json.loads((folder / "param_name_map.json").read_text(encoding="utf-8"))["weight_map"]
    tensors = {}
    for name, file_name in weight_map.items():
        file = open_safetensors(folder / file_name)
        tensors[name] = (file.tensors[name].dtype, file.raw(name))
    return tensors


def header_and_data(path):
    """Return all that a file says. MindSpore writes the keys of its metadata in an order of chance."""
    body = path.read_bytes()
    (length,) = struct.unpack("<Q", body[:8])
    header = json.loads(body[8 : 8 + length])
    return header.pop("__metadata__"), list(header.items()), body[8 + length :]


@pytest.mark.parametrize("name", SPECS)
def test_merged_tensors_equal_mindspores_and_the_originals(runs, name):
    root, made = runs
    result = CliRunner().invoke(
        main,
        ["merge", "--mindspore-ckpt-dir", str(made[name].checkpoint_dir), "--src_strategy_dirs",
         str(made[name].strategy_dir), "--output-dir", str(root / f"{name}_ours"), "--check-replicas"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ours_dir = root / f"{name}_ours" / "1_5_ckpt_convert" / "unified_safe"
    ours, theirs = read_unified(ours_dir), read_unified(root / f"{name}_out" / "unified")
    assert ours.keys() == theirs.keys() == made[name].whole.keys()
    for tensor, (dtype, value) in ours.items():
        assert dtype == theirs[tensor][0]
        np.testing.assert_array_equal(value, theirs[tensor][1])
        np.testing.assert_array_equal(value, made[name].whole[tensor])
    for path in sorted(ours_dir.glob("*.safetensors")):
        assert header_and_data(path) == header_and_data(root / f"{name}_out" / "unified" / path.name)
    strategies = [
        ours_dir.parent / "merge_strategy" / "merge_strategy.ckpt",
        root / f"{name}_out" / "merged.ckpt",
    ]
    assert read_strategy(strategies[0])[1] == read_strategy(strategies[1])[1]
    if SPECS[name].pp == 1:  # MindSpore puts stages in the order in which the folder lists their files
        assert strategies[0].read_bytes() == strategies[1].read_bytes()
    hyper = [
        open_safetensors(f / "hyper_param.safetensors") for f in (ours_dir, root / f"{name}_out" / "unified")
    ]
    assert hyper[0].tensors.keys() == hyper[1].tensors.keys()
    assert int(hyper[0].raw("global_step")) == 5


def test_the_specs_cover_what_can_be_cut():
    assert {spec.config for spec in SPECS.values()} == {TINY, TIED}
    assert len(SPECS) >= 10
