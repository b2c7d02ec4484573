"""What a run says, where."""

import errno
import io
from pathlib import Path

import pytest

from qwen3_train.reports.run_log import RunLog


def test_a_quiet_log_keeps_its_lines_from_the_terminal_but_not_its_warnings(tmp_path):
    stream = io.StringIO()
    log = RunLog(tmp_path / "run.log", append=False, stream=stream, quiet=True)
    log.line("step 1")
    log.line("the loss is not finite", "WARNING")
    log.close()
    assert [line.split(" - ")[-1] for line in stream.getvalue().splitlines()] == ["the loss is not finite"]
    assert (tmp_path / "run.log").read_text(encoding="utf-8").count("\n") == 2


def test_a_full_disk_names_the_log_that_cannot_be_written():
    log = RunLog(Path("/dev/full"), append=False, stream=io.StringIO())
    for write in (lambda: log.line("step 1"), log.close):
        with pytest.raises(OSError, match="/dev/full") as caught:
            write()
        assert caught.value.errno == errno.ENOSPC
