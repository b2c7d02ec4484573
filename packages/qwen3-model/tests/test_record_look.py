"""Records on a shared file system are read seldom once a job runs, and at once when something happens."""

import os
import subprocess
from types import SimpleNamespace

import pytest

from qwen3_model.errors import FormatError
from qwen3_model.ranks.msrun import record_look, records
from qwen3_model.ranks.msrun.live_line import LiveLine
from qwen3_model.ranks.msrun.record_look import RecordLook
from qwen3_model.ranks.msrun.records import RUNNING


@pytest.fixture
def reads(monkeypatch):
    """Count the reads of one worker's record, under a clock that the test turns."""
    told = SimpleNamespace(count=0, now_s=1000.0, pid=os.getpid())

    def read(log_dir, names):
        told.count += 1
        return {"worker_0": SimpleNamespace(state=RUNNING, pid=told.pid)}

    monkeypatch.setattr(record_look, "read_records", read)
    monkeypatch.setattr("time.monotonic", lambda: told.now_s)
    return told


def looks(look, reads, seconds, **how):
    before = reads.count
    for _ in range(10 * seconds):
        reads.now_s += 0.1
        look.records(**({"at_once": False} | how))
    return reads.count - before


def test_a_job_that_runs_is_looked_at_once_a_second(tmp_path, reads):
    look = RecordLook(tmp_path, ["worker_0"])
    assert looks(look, reads, 50) == 500
    reads.now_s += 20
    assert 9 <= looks(look, reads, 10) <= 11
    assert looks(look, reads, 1, at_once=True) == 10


def test_a_process_that_has_ended_is_looked_at_at_once(tmp_path, reads):
    look = RecordLook(tmp_path, ["worker_0"])
    reads.now_s += 100
    look.records(at_once=False)
    process = subprocess.Popen(["true"])
    process.wait()
    reads.pid = process.pid
    reads.now_s += 2
    look.records(at_once=False)
    assert looks(look, reads, 1) == 10


def test_a_line_that_nobody_sees_asks_for_nothing(reads, capfd):
    assert not any(LiveLine(quiet=True).is_due() for _ in range(3))
    line, asked = LiveLine(quiet=False), 0
    line.show("step 1")
    for _ in range(600):  # a minute
        reads.now_s += 0.1
        asked += line.is_due()
    assert asked <= 3, "where there is no terminal"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[]", r"\[\] is not a section"),
        ("", "Expecting value"),
        ('{"name": "worker_0", "pid": "7"}', "pid: '7' is not a whole number"),
        ('{"name": "worker_0", "pid": 7}', "state is missing"),
    ],
)
def test_a_record_of_another_form_is_one_sentence(tmp_path, text, fault):
    records.record_path(tmp_path, "worker_0").write_text(text)
    with pytest.raises(FormatError, match=rf"worker_0\.state\.json is no record of a worker: {fault}"):
        records.read_records(tmp_path, ["worker_0"])
