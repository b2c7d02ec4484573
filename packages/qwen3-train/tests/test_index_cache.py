"""Indexes that are kept on disk are those that would be made, and are made once."""

import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from train_inputs import counting_documents, write_tokens

from qwen3_train.data.blend import Blend
from qwen3_train.data.gpt_dataset import build_dataset
from qwen3_train.data.index_cache import cached


@pytest.fixture
def prefixes(tmp_path):
    return tuple(
        str(write_tokens(tmp_path / f"{name}_text_document", counting_documents(60, seed=seed), eod_id=1))
        for seed, name in enumerate("ab")
    )


@pytest.mark.parametrize("weights", [None, (0.3, 0.7)])
def test_samples_from_a_cache_are_those_made_in_memory(tmp_path, prefixes, weights):
    def texts(cache):
        how = {"seq_length": 16, "num_samples": 40, "seed": 3, "cache": cache}
        data = build_dataset(Blend(prefixes, weights), "90, 10, 0", "train", **how)
        return [data.text(number).tolist() for number in range(len(data))]

    wanted = texts(None)
    assert texts(tmp_path / "cache") == wanted
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}
    assert len(files) == 3
    assert texts(tmp_path / "cache") == wanted
    assert {path: path.stat().st_mtime_ns for path in files} == files, "nothing is made twice"
    for path in files:
        os.truncate(path, path.stat().st_size // 2)
    assert texts(tmp_path / "cache") == wanted, "what is damaged is made again"
    os.utime(f"{prefixes[0]}.idx", (1, 1))
    texts(tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4, "another file has another index"


def _make_once(folder, marks):
    def make():
        (marks / str(os.getpid())).touch()
        return {"a": np.arange(200_000, dtype=np.int64), "b": np.arange(6, dtype=np.int32).reshape(2, 3)}

    found = cached(folder, ("x", 1), make)
    return int(found["a"].sum()), found["b"].tolist()


def test_processes_that_come_at_once_make_it_once(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    with get_context("fork").Pool(4) as pool:
        results = pool.starmap(_make_once, [(tmp_path / "cache", marks)] * 4, chunksize=1)
    assert results == [(199_999 * 100_000, [[0, 1, 2], [3, 4, 5]])] * 4
    assert len(list(marks.iterdir())) == 1


def test_a_file_system_without_locks_still_gives_whole_files(tmp_path, monkeypatch):
    def no_locks(number, kind):
        raise OSError(95, "not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    marks = tmp_path / "marks"
    marks.mkdir()
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: _make_once(tmp_path / "cache", marks), range(3)))
    assert len({str(result) for result in results}) == 1
