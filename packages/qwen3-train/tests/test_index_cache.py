"""Indexes that are kept on disk are those that would be made, and are made once."""

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from train_inputs import counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.command.run_config import load_run_config
from qwen3_train.data import gpt_dataset, gpt_index, token_data
from qwen3_train.data.gpt_dataset import Wanted, build_dataset, index_share
from qwen3_train.data.gpt_index import fill_sample_index
from qwen3_train.data.index_cache import cached
from qwen3_train.data.token_data import prepare_tokens
from qwen3_train.settings.blend import Blend
from qwen3_train.settings.run import read_settings
from qwen3_train.settings.schema import TRAIN


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


def test_whoever_finds_the_index_looks_at_no_document(tmp_path, prefixes, monkeypatch):
    def sizes():
        how = {"seq_length": 16, "num_samples": None, "seed": 3, "cache": tmp_path / "cache"}
        return len(build_dataset(Blend(prefixes, None), None, "train", **how))

    wanted = sizes()

    def refuse(*_):
        raise AssertionError("a document was looked at")

    for name in ("check_index", "count_tokens", "fill_sample_index"):
        monkeypatch.setattr(gpt_dataset, name, refuse)
    assert sizes() == wanted


def test_machines_make_the_indexes_of_their_shares_and_find_those_of_the_others(
    tmp_path, prefixes, monkeypatch
):
    how = {"seq_length": 16, "num_samples": None, "seed": 3, "cache": tmp_path / "cache"}
    wanted = Wanted(blend=Blend(prefixes, None), split="90, 10, 0", part="train", **how)
    made, fill = [], gpt_dataset.fill_sample_index
    monkeypatch.setattr(
        gpt_dataset, "fill_sample_index", lambda *args: made.append(len(args[1])) or fill(*args)
    )
    for node in range(3):  # the third one has no share
        index_share(wanted, node, 3)
        assert len(made) == min(node + 1, 2)
    assert build_dataset(Blend(prefixes, None), "90, 10, 0", "train", **how) is not None
    assert len(made) == 2


def test_a_fingerprint_is_kept_and_is_that_without_a_cache(tmp_path, prefixes, monkeypatch):
    def fingerprint(cache):
        values = tiny_run(tmp_path / "out", prefixes[0])
        if cache is not None:
            values["train_dataset"]["data_loader"]["config"]["path_to_cache"] = str(cache)
        config = load_run_config(write_yaml(tmp_path / "config.yaml", values), [], TRAIN)
        settings = read_settings(config)
        return prepare_tokens(settings, settings.data, []).fingerprint(None)

    wanted = fingerprint(None)
    assert fingerprint(tmp_path / "cache") == wanted
    monkeypatch.setattr(token_data, "_hash", lambda *_: "0" * 16)
    assert fingerprint(tmp_path / "cache") == wanted
    os.utime(f"{prefixes[0]}.bin", (1, 1))
    assert fingerprint(tmp_path / "cache") == "0" * 16


def test_memory_is_bounded_by_the_documents_of_a_file(tmp_path, monkeypatch):
    """Starts of samples, the largest part, are written piece by piece; what is shuffled is in memory."""
    monkeypatch.setattr(gpt_index, "BLOCK_DOCUMENTS", 5_000)
    monkeypatch.setattr(gpt_index, "BLOCK_SAMPLES", 5_000)
    lengths = np.full(100_000, 40, np.int32)
    tracemalloc.start()
    found = cached(tmp_path, "x", lambda room: fill_sample_index(room, lengths, range(100_000), 4, None, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 1,000,000 samples of 4 tokens.
    assert {name: array.nbytes for name, array in found.items()} == pytest.approx(
        {"documents": 400_000, "starts": 16_000_000, "order": 4_000_000, "num_epochs": 8}, abs=20
    )
    assert 4e6 < peak < 6e6


def _make_once(folder, marks):
    def make(room):
        (marks / str(os.getpid())).touch()
        room.lay_out({"a": (np.int64, (200_000,)), "b": (np.int32, (2, 3))})
        for first in range(0, 200_000, 70_000):
            room.put("a", first, np.arange(first, min(first + 70_000, 200_000)))
        room.put("b", 1, np.array([[3, 4, 5]]))
        room.put("b", 0, np.array([[0, 1, 2]]))

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
