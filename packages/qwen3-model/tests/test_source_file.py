"""A source that changes while it is read is noticed, and descriptors stay few."""

import os
from pathlib import Path

import pytest

from qwen3_model.checkpoints import source_file
from qwen3_model.checkpoints.byte_writer import ByteWriter, FileRange
from qwen3_model.checkpoints.source_file import MAX_OPEN_FILES, open_source, refuse_changed
from qwen3_model.errors import FormatError


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


CHANGES = {
    "replaced": lambda path: write(path.with_name("new"), b"0123456789").rename(path),
    "overwritten": lambda path: path.write_bytes(b"9876543210"),
    "cut short": lambda path: os.truncate(path, 5),
    "removed": lambda path: path.unlink(),
    "replaced by a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changed_is_refused_at_the_end(tmp_path, change):
    file = open_source(write(tmp_path / "a", b"0123456789"))
    refuse_changed([file])
    CHANGES[change](file.path)
    with pytest.raises(FormatError, match="a was changed or replaced while it was read; nothing was written"):
        refuse_changed([file])


def test_what_is_read_later_is_of_the_file_that_was_opened_first(tmp_path):
    file = open_source(write(tmp_path / "a", b"0123456789"))
    CHANGES["replaced"](file.path)
    file.path.write_bytes(b"another!!!")
    assert file.read(2, 3).tobytes() == b"234"
    with ByteWriter(tmp_path / "copy") as writer:
        writer.write(FileRange(file, 2, 6))
    assert (tmp_path / "copy").read_bytes() == b"234567"


@pytest.mark.parametrize("change", ["replaced", "overwritten", "cut short", "removed"])
def test_a_file_that_is_opened_again_must_be_the_same(tmp_path, change):
    file = open_source(write(tmp_path / "a", b"0123456789"))
    others = [open_source(write(tmp_path / f"other{i}", b"x")) for i in range(MAX_OPEN_FILES)]
    CHANGES[change](file.path)
    with pytest.raises(FormatError, match="while it was read"):
        file.read(0, 10)
    assert others[0].read(0, 1).tobytes() == b"x"


def test_a_file_that_becomes_shorter_is_a_sentence(tmp_path):
    file = open_source(write(tmp_path / "a", b"0123456789"))
    os.truncate(file.path, 5)
    assert file.read(0, 5).tobytes() == b"01234"
    with pytest.raises(FormatError, match="a has become shorter while it was read"):
        file.read(3, 4)
    with pytest.raises(FormatError, match="a has become shorter"), ByteWriter(tmp_path / "copy") as writer:
        writer.write(FileRange(file, 3, 4))


def test_many_files_take_few_descriptors_and_give_them_back(tmp_path):
    before = num_open()
    files = [open_source(write(tmp_path / str(i), b"%d" % i)) for i in range(3 * MAX_OPEN_FILES)]
    for number, file in enumerate(files):
        assert bytes(file.read(0, file.size_bytes)) == b"%d" % number
    assert num_open() <= before + MAX_OPEN_FILES + 1
    with files[0].descriptor() as number:
        for file in files[1:]:
            file.read(0, 1)
        assert os.pread(number, 1, 0) == b"0", "one that is used is not closed"
    del files, file
    assert num_open() <= before + 1
    assert not source_file._DESCRIPTORS._open


def test_a_pipe_does_not_wait_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="is a pipe or a device, not a file"):
        open_source(tmp_path / "pipe")
    with pytest.raises(FormatError, match="is a folder, not a file"):
        open_source(tmp_path)
