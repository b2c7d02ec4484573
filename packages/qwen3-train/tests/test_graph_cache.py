"""A step's graph comes from the cache only where it is the same graph, whole; the numbers stay the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from train_inputs import counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_train.reports.run_log import read_metrics
from qwen3_train.step.graph_cache import GraphCache, is_whole

TAKEN = "Use the compilation cache"
LONGEST_S = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    write_tokens(folder / "tiny_text_document", counting_documents(60), eod_id=1)
    return folder


def train(folder, name, **changes):
    """Train in a process of its own; return its numbers and whether it took a graph from the cache."""
    values = tiny_run(
        folder / name, folder / "tiny_text_document",
        train_dataset__data_loader__sizes=[12, 0, 0], context__enable_compile_cache=True,
        context__compile_cache_path=str(folder / "cache"), **changes,
    )  # fmt: skip
    config = write_yaml(folder / f"{name}.yaml", values)
    done = subprocess.run(
        [sys.executable, "-m", "qwen3_train", "launch", "--config", str(config)],
        capture_output=True, text=True, timeout=LONGEST_S, check=False, env=os.environ | {"GLOG_v": "2"},
    )  # fmt: skip
    logs = [path.read_text(encoding="utf-8") for path in (folder / name).rglob("*.log")]
    assert done.returncode == 0, done.stderr
    lines = read_metrics(folder / name / "metrics.jsonl")
    numbers = [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]
    return numbers, TAKEN in "".join([done.stdout, done.stderr, *logs])


def test_only_a_run_of_the_same_graph_takes_it(folder):
    first, was_taken = train(folder, "first")
    assert len(first) == 3
    assert not was_taken
    (kept,) = (folder / "cache").iterdir()
    assert is_whole(kept)
    again, was_taken = train(folder, "again")
    assert was_taken
    assert again == first
    # Clipping is a part, so the kept graph must not serve.
    other, was_taken = train(folder, "other", runner_wrapper__use_clip_grad=False)
    assert not was_taken
    assert other[0] == first[0]
    assert other[-1] != first[-1]


@pytest.fixture
def fresh_process(monkeypatch):
    for name in ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("fresh_process")
def test_a_damaged_graph_is_written_anew(tmp_path):
    def compile_as(text):
        with GraphCache(tmp_path, "facts").graph("inputs"):
            place = Path(os.environ.pop("MS_COMPILER_CACHE_PATH"))
            graph = place / "rank_0" / "compile_cache_0.mindir"
            graph.parent.mkdir(exist_ok=True)
            if not graph.exists():
                graph.write_text(text, encoding="utf-8")
        del os.environ["MS_COMPILER_CACHE_ENABLE"]
        (kept,) = tmp_path.iterdir()
        assert is_whole(kept)
        return next(kept.rglob("*.mindir"))

    assert compile_as("first").read_text(encoding="utf-8") == "first"
    graph = compile_as("second")
    assert graph.read_text(encoding="utf-8") == "first"
    graph.write_text("fir", encoding="utf-8")
    assert compile_as("third").read_text(encoding="utf-8") == "third"


@pytest.mark.usefixtures("fresh_process")
@pytest.mark.parametrize("place", ["cache", "graph", "file"])
def test_a_graph_that_others_could_have_written_is_not_taken(tmp_path, place):
    cache, notes = tmp_path / "cache", []

    def compile_once():
        with GraphCache(cache, "facts", notes.append).graph("inputs"):
            folder = os.environ.pop("MS_COMPILER_CACHE_PATH", None)
            os.environ.pop("MS_COMPILER_CACHE_ENABLE", None)
            if folder is not None and not list(Path(folder).rglob("*.mindir")):
                (Path(folder) / "a.mindir").touch(mode=0o666)
        os.environ.pop("MS_COMPILER_CACHE_ENABLE", None)
        return folder

    before = os.umask(0)
    try:
        compile_once()
    finally:
        os.umask(before)
    (kept,) = cache.iterdir()
    assert compile_once() == str(kept)
    assert notes == []
    changed = {"cache": cache, "graph": kept, "file": kept / "a.mindir"}[place]
    changed.chmod(0o777)
    assert compile_once() is None
    (note,) = notes
    assert note.startswith("the compiled graph is not kept or taken: ")
    assert "can be written by others" in note


@pytest.mark.usefixtures("fresh_process")
def test_a_failing_compilation_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="no"), GraphCache(tmp_path, "facts").graph("inputs"):
        raise RuntimeError("no")
    assert list(tmp_path.iterdir()) == []
    # A second graph of the process would get the first one's file.
    with GraphCache(tmp_path, "facts").graph("other inputs"):
        assert os.environ["MS_COMPILER_CACHE_ENABLE"] == "0"
    assert list(tmp_path.iterdir()) == []
