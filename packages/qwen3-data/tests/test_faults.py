"""A run that dies at any moment leaves no output, and --resume gives the bytes of an unbroken run."""

import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from qwen3_data.encode import engines, reference_process
from qwen3_data.write import token_writer, workspace
from qwen3_model.text.tokens import open_tokens, read_manifest

PROGRAM = "from qwen3_data.cli import main; main()"
NUM_KILLS = 10
LONGEST_RUN_S = 60


def bytes_of(tmp_path, prefix="out"):
    return [(tmp_path / f"{prefix}_text_document{ending}").read_bytes() for ending in (".bin", ".idx")]


def write_corpus(path, num_documents=3000):
    rng = random.Random(7)
    words = ["alpha", "beta", "gamma", "<|im_end|>", "delta\n", "123"]
    with path.open("w") as file:
        for number in range(num_documents):
            text = " ".join(rng.choices(words, k=rng.randrange(300)))
            file.write(json.dumps({"text": text}) + "\n")
            if number % 500 == 499:
                file.write("no record\n")


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A corpus read in many small blocks, so that a run has many moments to die at."""
    monkeypatch.setattr("qwen3_data.input.blocks.BLOCK_BYTES", 16 << 10)
    write_corpus(tmp_path / "in.jsonl")
    return tmp_path / "in.jsonl"


SKIP = ("--on-error", "skip", "--shard-size", "64K")


def die_at(monkeypatch, call, error):
    """Let the `call`-th write of a run raise."""
    count = 0
    real = token_writer._write_all

    def write(file, raw):
        nonlocal count
        count += 1
        if count == call:
            raise error
        real(file, raw)

    monkeypatch.setattr(token_writer, "_write_all", write)


@pytest.mark.parametrize("call", [1, 20, 77, 130, 200])
def test_an_interrupted_run_resumes_to_the_same_bytes(preprocess, corpus, monkeypatch, tmp_path, call):
    words = (*SKIP, "--rejects", tmp_path / "bad.jsonl")
    assert preprocess(corpus, *SKIP, "--rejects", tmp_path / "whole.jsonl", prefix="whole").exit_code == 0
    with monkeypatch.context() as patch:
        die_at(patch, call, KeyboardInterrupt())
        assert preprocess(corpus, *words).exit_code != 0
    assert not list(tmp_path.glob("out*"))
    assert not (tmp_path / "bad.jsonl").exists()
    result = preprocess(corpus, *words, "--resume")
    assert result.exit_code == 0, result.output
    assert bytes_of(tmp_path) == bytes_of(tmp_path, "whole")
    assert read_manifest(tmp_path / "out_text_document") == read_manifest(tmp_path / "whole_text_document")
    assert (tmp_path / "bad.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("kind", ["jsonl.gz", "json", "parquet", "two files"])
def test_every_kind_of_input_resumes(preprocess, monkeypatch, tmp_path, kind):
    monkeypatch.setattr("qwen3_data.input.blocks.BLOCK_BYTES", 4 << 10)
    monkeypatch.setattr("qwen3_data.input.parquet.MAX_ROWS", 64)
    texts = [f"text {number} " * (number % 50) for number in range(1000)]
    raw = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    source = tmp_path / f"in.{kind}"
    words = ("--shard-size", "4K")
    if kind == "jsonl.gz":
        source.write_bytes(gzip.compress(raw.encode()))
    elif kind == "json":
        source.write_text(json.dumps([{"text": text} for text in texts]))
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
        parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
        parquet.write_table(pyarrow.table({"text": texts}), source)
    else:
        source = tmp_path / "a.jsonl"
        source.write_text(raw[: len(raw) // 2 + raw[len(raw) // 2 :].index("\n") + 1])
        (tmp_path / "b.jsonl").write_text(raw[len(raw) // 2 + raw[len(raw) // 2 :].index("\n") + 1 :])
        words = (*words, "--input", tmp_path / "b.jsonl")
    assert preprocess(source, *words, prefix="whole").exit_code == 0
    assert open_tokens(tmp_path / "whole_text_document").num_documents == 1000
    for call in (12, 9, 6):
        with monkeypatch.context() as patch:
            die_at(patch, call, KeyboardInterrupt())
            assert preprocess(source, *words, "--resume").exit_code != 0
    progress = json.loads((tmp_path / ".out.partial" / "progress.json").read_text())
    assert 0 < progress["totals"]["num_documents"] < 1000
    assert preprocess(source, *words, "--resume").exit_code == 0
    assert bytes_of(tmp_path) == bytes_of(tmp_path, "whole")


def test_an_interrupted_run_is_not_forgotten(preprocess, corpus, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        die_at(patch, 130, KeyboardInterrupt())
        preprocess(corpus, *SKIP)
    result = preprocess(corpus, *SKIP)
    assert result.exit_code == 1
    assert "pass --resume to go on with it, or --force to begin anew" in result.stderr
    result = preprocess(corpus, *SKIP, "--resume", "--no-append-eod")
    assert result.exit_code == 1
    assert "had another append-eod; resume it with the same" in result.stderr
    assert preprocess(corpus, *SKIP, "--resume").exit_code == 0


@pytest.mark.parametrize("damage", [
    lambda text: text[:-9], lambda text: "[]", lambda text: "{}", lambda text: "[" * 100_000,
    lambda text: text.replace('"num_documents": ', '"num_documents": 1'),
    lambda text: text.replace('"position": [', '"position": ["x", '),
])  # fmt: skip
def test_a_damaged_resume_point_is_refused_and_force_begins_anew(
    preprocess, corpus, monkeypatch, tmp_path, damage
):
    with monkeypatch.context() as patch:
        die_at(patch, 130, KeyboardInterrupt())
        preprocess(corpus, *SKIP)
    path = tmp_path / ".out.partial" / "progress.json"
    path.write_text(damage(path.read_text()))
    for words in ((), ("--resume",), ("--resume", "--force")):
        result = preprocess(corpus, *SKIP, *words)
        assert result.exit_code == 1
        assert f"{path} is damaged or of an earlier version; pass --force without --resume" in result.stderr
    assert preprocess(corpus, *SKIP, "--force").exit_code == 0
    assert bytes_of(tmp_path)


def test_resume_of_a_whole_output_does_nothing(preprocess, write_jsonl, tmp_path):
    source = write_jsonl([{"text": "a"}])
    assert preprocess(source, "--resume").exit_code == 0
    changed = (tmp_path / "out_text_document.bin").stat().st_mtime_ns
    result = preprocess(source, "--resume")
    assert result.exit_code == 0
    assert "already whole" in result.stdout
    assert (tmp_path / "out_text_document.bin").stat().st_mtime_ns == changed


def test_a_full_disk_leaves_nothing(preprocess, corpus, monkeypatch, outputs):
    die_at(monkeypatch, 20, OSError(errno.ENOSPC, "No space left on device"))
    result = preprocess(corpus, "--on-error", "skip")
    assert result.exit_code == 1
    assert "no space left on the device" in result.stderr
    assert outputs() == []


def test_a_disk_that_fills_late_can_be_resumed(preprocess, corpus, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        die_at(patch, 130, OSError(errno.ENOSPC, "No space left on device"))
        result = preprocess(corpus, *SKIP)
    assert result.exit_code == 1
    assert "make room: what was finished is kept, and --resume goes on with it" in result.stderr
    assert preprocess(corpus, *SKIP, "--resume").exit_code == 0
    assert open_tokens(tmp_path / "out_text_document").num_documents == 3000


def test_a_dying_stage_stops_the_command_with_its_reason(preprocess, corpus, monkeypatch, outputs):
    def fail(self, texts):
        raise RuntimeError("worker died")

    monkeypatch.setattr("qwen3_data.encode.engines.FastokensEngine.encode", fail)
    result = preprocess(corpus, "--on-error", "skip", "--engine", "fastokens")
    assert result.exit_code == 1
    assert "worker died" in str(result.exception)
    assert outputs() == []


def test_a_dead_reference_process_stops_the_command_with_its_code(preprocess, corpus, monkeypatch, outputs):
    monkeypatch.setattr("qwen3_data.encode.reference_process.sys.executable", "/bin/false")
    result = preprocess(corpus, "--on-error", "skip", "--engine", "fastokens")
    assert result.exit_code == 1
    assert "the process of the reference encoder died with code 1" in result.stderr
    assert outputs() == []


def test_the_reference_ends_without_a_word_when_its_parent_is_gone(qwen3_tokenizer_dir):
    script = reference_process.__file__
    words = [sys.executable, "-P", script, str(qwen3_tokenizer_dir / "tokenizer.json"), "text"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **pipes) as process:
        process.stdout.close()
        process.stdin.write(b'"a"\n')
        process.stdin.close()
        assert process.stderr.read() == b""


def test_a_difference_to_the_reference_stops_the_run(preprocess, corpus, monkeypatch, outputs):
    real = engines.FastokensEngine.encode

    def wrong(self, texts):
        ids_T, offsets = real(self, texts)
        return ids_T + 1, offsets

    monkeypatch.setattr(engines.FastokensEngine, "encode", wrong)
    result = preprocess(corpus, "--on-error", "skip", "--engine", "fastokens")
    assert result.exit_code == 1
    assert "fastokens and tokenizers disagree at token 0 of a text that begins" in result.stderr
    assert "pass --engine tokenizers" in result.stderr
    assert outputs() == []


def test_two_runs_do_not_write_one_output(preprocess, corpus, tmp_path):
    held = workspace.Workspace(tmp_path / "out", force=False, resume=False)
    try:
        result = preprocess(corpus)
    finally:
        held.remove()
    assert result.exit_code == 1
    assert "another run is writing" in result.stderr


@pytest.mark.parametrize("step", range(6))
def test_a_kill_while_outputs_appear_never_mixes_two_runs(
    preprocess, write_jsonl, monkeypatch, tmp_path, step
):
    assert preprocess(write_jsonl([{"text": "old " * 9}], "old.jsonl")).exit_code == 0
    old = bytes_of(tmp_path)
    source = write_jsonl([{"text": "new"}])
    assert preprocess(source, prefix="whole").exit_code == 0
    with monkeypatch.context() as patch:
        calls = 0
        real = workspace.sync

        def sync(path):
            nonlocal calls
            if calls == step:
                raise KeyboardInterrupt
            calls += 1
            real(path)

        patch.setattr(workspace, "sync", sync)
        preprocess(source, "--force")
    index = tmp_path / "out_text_document.idx"
    if index.exists():
        assert bytes_of(tmp_path) in (old, bytes_of(tmp_path, "whole"))
        read_manifest(tmp_path / "out_text_document")
    assert preprocess(source, "--force", "--resume").exit_code == 0
    assert bytes_of(tmp_path) == bytes_of(tmp_path, "whole")


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_nothing_or_all(demo_tokenizer_dir, tmp_path):
    write_corpus(tmp_path / "in.jsonl", 20_000)
    base = [sys.executable, "-c", PROGRAM, "preprocess", "--input", str(tmp_path / "in.jsonl")]
    base += ["--tokenizer-dir", str(demo_tokenizer_dir), *SKIP, "--output-prefix"]
    begin_s = time.monotonic()
    subprocess.run([*base, str(tmp_path / "whole")], check=True, capture_output=True, timeout=LONGEST_RUN_S)
    whole_s = time.monotonic() - begin_s
    rng = random.Random(3)
    for number in range(NUM_KILLS):
        prefix = f"out{number}"
        process = subprocess.Popen(
            [*base, str(tmp_path / prefix)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=whole_s * (0.3 + 0.7 * rng.random()))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            if (tmp_path / f"{prefix}_text_document.idx").exists():
                assert bytes_of(tmp_path, prefix) == bytes_of(tmp_path, "whole")
        subprocess.run(
            [*base, str(tmp_path / prefix), "--resume"],
            check=True,
            capture_output=True,
            timeout=LONGEST_RUN_S,
        )
        assert bytes_of(tmp_path, prefix) == bytes_of(tmp_path, "whole")
        assert not list(tmp_path.glob(f".{prefix}*"))


@pytest.mark.parametrize("gone_first", ["rejects.jsonl", "lock", None])
def test_a_kill_while_the_finished_run_tidies_up_loses_nothing(
    preprocess, corpus, monkeypatch, outputs, tmp_path, gone_first
):
    def remove_one_and_die(folder, **options):
        if gone_first:
            (folder / gone_first).unlink()
        raise KeyboardInterrupt

    words = (corpus, *SKIP, "--rejects", tmp_path / "bad.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr("qwen3_data.write.workspace.shutil.rmtree", remove_one_and_die)
        assert preprocess(*words).exit_code != 0
    rejects = (tmp_path / "bad.jsonl").read_bytes()
    assert rejects
    result = preprocess(*words, "--resume")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "bad.jsonl").read_bytes() == rejects
    assert not [name for name in outputs() if name.startswith(".")]
