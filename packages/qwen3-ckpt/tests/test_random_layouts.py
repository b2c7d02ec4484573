"""Checkpoints of random layouts: both faces of the engine give the tensors they were cut from, bit for bit.

Copied without being read (merge, reshard), and read in parts into memory (as training and generation do).
"""

import dataclasses
import random

import numpy as np
import pytest
from ckpt_samples import TINY, Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.checkpoint_files import choose_checkpoint
from qwen3_model.checkpoints.rank_tensors import open_rank_tensors
from qwen3_model.checkpoints.weight_files import open_checkpoint

ODD = dataclasses.replace(
    TINY, num_heads=6, num_kv_heads=3, hidden_size=12, intermediate_size=36, vocab_size=36, num_layers=6
)
KINDS = {"even": (TINY, (1, 2, 4), (1, 2, 4)), "odd": (ODD, (1, 3), (1, 2, 3))}


def random_spec(rng: random.Random) -> Spec:
    config, shards, stages = KINDS[rng.choice(sorted(KINDS))]
    return Spec(
        config=dataclasses.replace(config, tie_word_embeddings=rng.random() < 0.5),
        dp=rng.choice((1, 2)), tp=rng.choice(shards), pp=rng.choice(stages),
        with_moments=rng.random() < 0.7, shard_moments=rng.random() < 0.5,
        remove_redundancy=rng.random() < 0.3, dtype=rng.choice(("F32", "BF16", "F16")),
    )  # fmt: skip


def random_part(rng: random.Random, shape: tuple[int, ...]) -> tuple[slice, ...]:
    ends = [sorted(rng.sample(range(size + 1), 2)) for size in shape]
    return tuple(slice(first, last) for first, last in ends)


@pytest.mark.parametrize("seed", range(24))
def test_a_random_layout_goes_to_another_and_back(tmp_path, seed):
    rng = random.Random(seed)
    spec = random_spec(rng)
    made = make_checkpoint(tmp_path / "run", spec)
    # Which shards divide, whatever the source had.
    target = random_spec(random.Random(seed + 1000))
    shards = rng.choice(KINDS["odd" if spec.config.num_kv_heads == 3 else "even"][1])
    words = [
        "reshard", tmp_path / "run", tmp_path / "again", "--data-parallel", target.dp,
        "--model-parallel", shards, "--pipeline-stage", rng.choice((1, 2)),
        *(["--shard-optimizer"] if target.shard_moments else []),
        *(["--remove-redundancy"] if target.remove_redundancy else []),
    ]  # fmt: skip
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    for folder in (tmp_path / "run", tmp_path / "again"):
        copied = open_checkpoint(folder).tensors
        assert copied.keys() == made.whole.keys()
        files, passed_over = choose_checkpoint(folder, None, None)
        assert not passed_over
        in_memory = open_rank_tensors(files, own_rank=rng.choice(sorted(files)))
        for name, values in made.whole.items():
            np.testing.assert_array_equal(copied[name].read(), values, err_msg=name)
            part = random_part(rng, values.shape)
            dtype, found = in_memory.read(name, part)
            assert dtype == spec.dtype
            np.testing.assert_array_equal(found, values[part], err_msg=f"{name} {part}")
