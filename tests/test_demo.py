"""The figures that tools/demo computes itself."""

import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools/lib"))

import demo


def _write_tokens(prefix, sequences):
    """Write Megatron's .bin and .idx, version 1, of int32 ids."""
    lengths = np.array([len(ids) for ids in sequences], np.int32)
    pointers = np.concatenate([[0], np.cumsum(lengths[:-1]) * 4]).astype(np.int64)
    count = len(sequences)
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, count, count + 1)
    indices = np.arange(count + 1, dtype=np.int64)
    prefix.with_suffix(".idx").write_bytes(
        header + lengths.tobytes() + pointers.tobytes() + indices.tobytes()
    )
    prefix.with_suffix(".bin").write_bytes(np.concatenate(sequences).astype(np.int32).tobytes())


def test_unigram_entropy_is_that_of_the_counts_over_all_documents(tmp_path):
    _write_tokens(tmp_path / "x", [[7, 7, 3], [3000, 7, 7, 3, 1]])
    shares = [4 / 8, 2 / 8, 1 / 8, 1 / 8]
    by_hand = -sum(share * math.log(share) for share in shares)
    assert demo.unigram_entropy(tmp_path / "x") == pytest.approx(by_hand, rel=1e-12)


def test_each_demo_gets_the_next_number(tmp_path):
    assert demo._next_folder(tmp_path / "demo").name == "1"
    for name in ("1", "9", "10", "notes"):
        (tmp_path / "demo" / name).mkdir(parents=True)
    assert demo._next_folder(tmp_path / "demo").name == "11"
