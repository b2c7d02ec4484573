"""A full disk, and memory that does not grow with the checkpoint."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from ckpt_samples import Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.safetensors_file import TensorPlan, encode_header, open_safetensors
from qwen3_model.checkpoints.strategy import TensorLayout, write_strategy

LIMIT_BYTES = 256 << 20
ROWS, COLUMNS = 8192, 4800  # two such columns make a tensor of 315 MB
UNDER_LIMIT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), int(sys.argv[1])))
from qwen3_ckpt.cli import main
main(sys.argv[2:])
"""


def flags_of(run_dir, out):
    return [
        "merge", "--mindspore-ckpt-dir", str(run_dir / "checkpoint"), "--src-strategy-dirs",
        str(run_dir / "strategy"), "--output-dir", str(out),
    ]  # fmt: skip


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_merge_that_will_not_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    made = make_checkpoint(tmp_path / "run", Spec(tp=2))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    result = CliRunner().invoke(main, flags_of(tmp_path / "run", tmp_path / "out"))
    assert result.exit_code == 1
    assert "needs 47.81 kB but 1.00 kB are free" in result.output
    assert not (tmp_path / "out").exists()
    assert made.checkpoint_dir.is_dir()


@pytest.mark.parametrize("target", ["mindspore", "hf"])
def test_a_disk_that_fills_up_leaves_the_sources_and_the_earlier_output(tmp_path, monkeypatch, target):
    make_checkpoint(tmp_path / "run", Spec(tp=2, pp=2))
    flags = [*flags_of(tmp_path / "run", tmp_path / "out"), "--to", target]
    assert CliRunner().invoke(main, flags).exit_code == 0
    before = files_below(tmp_path)
    calls = []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return copy(*arguments)

    copy = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", full)
    result = CliRunner().invoke(main, [*flags, "--force"])
    assert result.exit_code == 1
    assert "no space left on the device" in result.output
    assert files_below(tmp_path) == before


def test_a_tensor_larger_than_the_memory_limit_is_joined_within_it(tmp_path):
    layout = TensorLayout(dev_matrix=(2,), tensor_map=(-1, 0))
    plan = TensorPlan("model.layers.0.mlp.down_proj.weight", "F32", (ROWS, COLUMNS))
    assert 2 * plan.size_bytes > LIMIT_BYTES
    for rank in range(2):
        path = tmp_path / "run" / "checkpoint" / f"rank_{rank}" / f"x_rank_{rank}-1_1.safetensors"
        path.parent.mkdir(parents=True)
        header = encode_header([plan], {})
        path.write_bytes(header)
        os.truncate(path, len(header) + plan.size_bytes)  # a hole of zeros, which costs no disk
        write_strategy(
            tmp_path / "run" / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt", 0, {plan.name: layout}
        )
    command = [
        sys.executable,
        "-c",
        UNDER_LIMIT,
        str(LIMIT_BYTES),
        *flags_of(tmp_path / "run", tmp_path / "out"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (merged,) = (tmp_path / "out").rglob("part0.safetensors")
    assert open_safetensors(merged).tensors[plan.name].shape == (ROWS, 2 * COLUMNS)
    shutil.rmtree(tmp_path / "out")
