import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3_model.command import files
from qwen3_model.command.files import (
    output_directory,
    refuse_existing,
    require_free_space,
    write_atomically,
    write_text_atomically,
)
from qwen3_model.errors import OutputExistsError, Qwen3Error


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")

    def fail(temporary):
        temporary.write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with output_directory(out) as partial:
        (partial / "a").write_text("1", encoding="utf-8")
        assert not out.exists()
    assert names(out) == ["a"]
    assert names(out.parent) == ["out"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    out = tmp_path / "out"

    def fill():
        with output_directory(out) as partial:
            (partial / "a").write_text("1", encoding="utf-8")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fill()
    assert names(tmp_path) == []


def test_an_existing_output_needs_force_and_goes_only_when_the_new_one_is_whole(tmp_path):
    out = tmp_path / "out"
    with output_directory(out) as partial:
        (partial / "old").write_text("1", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="--force"), output_directory(out):
        pass
    with output_directory(out, force=True) as partial:
        assert names(out) == ["old"]
        (partial / "new").write_text("2", encoding="utf-8")
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_refusal_names_the_output_and_the_remedy(tmp_path):
    with pytest.raises(OutputExistsError) as caught:
        refuse_existing(tmp_path, force=False)
    assert str(tmp_path) in str(caught.value)
    assert "--force" in str(caught.value)
    refuse_existing(tmp_path, force=True)


def test_too_little_space_is_said_in_gigabytes_before_any_work(tmp_path):
    with pytest.raises(Qwen3Error, match=r"needs 1000000000\.00 GB but"):
        require_free_space(tmp_path / "not" / "there", 10**18)
    require_free_space(tmp_path, 1)


WRITER = """
import sys, time
from pathlib import Path
from qwen3_model.command.files import output_directory
with output_directory(Path(sys.argv[1])) as partial:
    (partial / "a").write_text("half")
    print("started", flush=True)
    time.sleep(60)
"""


def start_writer(out: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_a_killed_writer_leaves_no_output_and_the_next_one_sweeps_up_after_it(tmp_path):
    out = tmp_path / "out"
    process = start_writer(out)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    assert len(names(tmp_path)) == 1, "the hidden remains of the dead process"
    with output_directory(out) as partial:
        (partial / "b").write_text("whole", encoding="utf-8")
    assert names(tmp_path) == ["out"]
    assert names(out) == ["b"]


def test_a_living_writers_temporary_folder_is_left_alone(tmp_path):
    out = tmp_path / "out"
    process = start_writer(out)
    try:
        with output_directory(out) as partial:
            assert len(names(tmp_path)) == 2
            (partial / "b").write_text("1", encoding="utf-8")
        assert len(names(tmp_path)) == 2
    finally:
        process.kill()
        process.communicate()


def test_the_temporary_name_carries_the_process(tmp_path):
    with output_directory(tmp_path / "out") as partial:
        assert partial.name.split(".")[-2] == str(os.getpid())
        assert partial.parent == tmp_path
    assert time.time() - (tmp_path / "out").stat().st_mtime < 60


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_whole_with_and_without_the_systems_exchange(
    tmp_path, monkeypatch, can_exchange
):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with files.output_directory(tmp_path / "out", force=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_working_folder_is_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(OutputExistsError, match="is never replaced"):
        files.refuse_existing(tmp_path, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_a_pipe_is_never_replaced(tmp_path, force):
    """As root, /dev/null would have become a file for everyone on the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(OutputExistsError, match="is a device or a pipe"):
            refuse_existing(path, force=force)
        with pytest.raises(OutputExistsError, match="is a device or a pipe"):
            write_text_atomically(path, "new")
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_a_link_stays_and_the_file_that_it_names_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    file, link = tmp_path / "far/file", tmp_path / "link"
    file.write_text("old", "utf-8")
    link.symlink_to(file)
    write_text_atomically(link, "new")
    assert link.is_symlink()
    assert file.read_text("utf-8") == "new"
    assert names(tmp_path / "far") == ["file"]


def test_a_folder_that_appears_meanwhile_is_not_replaced_without_force(tmp_path):
    out = tmp_path / "out"

    def two_at_once():
        with output_directory(out) as partial:
            (partial / "ours").touch()
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(OutputExistsError):
        two_at_once()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_an_output_that_is_or_holds_a_source_is_refused_also_with_force(tmp_path):
    source = tmp_path / "run" / "checkpoint" / "rank_0"
    source.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "other").mkdir()
    for output, what in (("run/checkpoint/rank_0", "is"), ("run", "holds"), ("link", "holds")):
        with pytest.raises(OutputExistsError, match=f"{output} {what} .*rank_0, which is read, and is never"):
            refuse_existing(tmp_path / output, force=True, sources=[tmp_path / "other", source])
    refuse_existing(tmp_path / "run" / "merged", force=True, sources=[source])
    refuse_existing(
        tmp_path / "other", force=True, sources=[source, tmp_path / "not there", Path("a\0" * 999)]
    )


def test_a_source_is_known_by_its_link_too(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "x").touch()
    (tmp_path / "snapshot").mkdir()
    weights = tmp_path / "snapshot" / "model.safetensors"
    weights.symlink_to("../blobs/x")
    for output in ("blobs", "snapshot", "blobs/x"):
        with pytest.raises(OutputExistsError, match="which is read"):
            refuse_existing(tmp_path / output, force=True, sources=[weights])


def test_a_source_that_the_block_turns_into_the_output_is_refused_at_the_end(tmp_path):
    source, output = tmp_path / "a", tmp_path / "b"
    source.mkdir()

    def fill():
        with output_directory(output, force=True, sources=[output / "part"]):
            source.rename(output)
            (output / "part").touch()

    with pytest.raises(OutputExistsError, match="holds"):
        fill()
    assert names(tmp_path) == ["b"]
    assert names(output) == ["part"]


def test_no_link_that_a_neighbour_has_put_there_is_followed(tmp_path, monkeypatch):
    precious = tmp_path / "precious.txt"
    precious.write_text("keep", encoding="utf-8")
    first = files.temporary_neighbour(tmp_path / "a")
    assert first != files.temporary_neighbour(tmp_path / "a"), "nobody can make the link beforehand"
    monkeypatch.setattr(files, "temporary_neighbour", lambda path: first)
    first.symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_text_atomically(tmp_path / "a", "new")
    assert precious.read_text(encoding="utf-8") == "keep"


def test_a_link_to_nothing_and_the_longest_name_are_outputs_with_a_sentence_or_a_result(tmp_path):
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OutputExistsError, match="is a link to nowhere, which is not there"):
        refuse_existing(tmp_path / "dangling", force=True)
    for name in ("n" * 255, "\u4e2d" * 85):
        write_text_atomically(tmp_path / name, "text")
        assert (tmp_path / name).read_text(encoding="utf-8") == "text"


def test_a_replaced_folder_that_was_read_only_goes_too(tmp_path):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "a").touch()
    (out / "deep").chmod(0o555)
    out.chmod(0o555)
    with output_directory(out, force=True) as partial:
        (partial / "new").touch()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["new"]
