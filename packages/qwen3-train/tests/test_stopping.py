"""A run that is asked to end: it finishes the step, saves, ends with code 75, and goes on as if unbroken."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from train_inputs import counting_documents, tiny_run, write_tokens, write_yaml

from qwen3_model.errors import UsageError
from qwen3_model.ranks.msrun.stop_signals import StopRequest
from qwen3_train.reports.event_file import EventFile
from qwen3_train.reports.run_log import read_metrics
from qwen3_train.trainer.stopping import CHECK_S, StopAgreement, parse_duration

LONGEST_S = 300
ENDLESS = 20_000
"""Steps of a run that a test ends: more than it takes while the test looks."""


class Clock:
    """Ranks in one process: each takes part in a sum when its turn comes."""

    def __init__(self, requests, **options):
        self.sums, self.calls = [], 0
        self.ranks = [
            StopAgreement(
                request, self.add, is_first=rank == 0, is_alone=False, checkpoint_bytes=0, **options
            )
            for rank, request in enumerate(requests)
        ]

    def add(self, *values):
        self.calls += 1
        self.sums = [sum(pair) for pair in zip(self.sums or [0.0] * len(values), values, strict=True)]
        return self.sums

    def reasons(self, step, step_time_s):
        # The last rank to come sees the whole sum; all do in a real one.
        self.sums = []
        for rank in self.ranks:
            saved = rank._next
            rank.reason(step, step_time_s)
            rank._next = saved
        whole = list(self.sums)
        for rank in self.ranks:
            rank.add = lambda *values: whole
        told = {rank.reason(step, step_time_s) for rank in self.ranks}
        for rank in self.ranks:
            rank.add = self.add
        return told


def test_all_ranks_agree_on_a_signal_that_one_has_seen():
    requests = [StopRequest() for _ in range(3)]
    clock = Clock(requests)
    assert clock.reasons(1, 0.0) == {""}
    requests[2].put(signal.SIGUSR1)
    assert clock.reasons(2, 0.5) == {"SIGUSR1"}
    requests[1].put(signal.SIGTERM)
    assert clock.reasons(4, 0.5) == {"SIGTERM"}


def test_all_ranks_agree_on_the_file_that_rank_0_reads(tmp_path):
    asked = tmp_path / "exit.json"
    clock = Clock([StopRequest(), StopRequest()], exit_file=asked)
    for text, reason in (("", ""), ('{"GracefulExit": 0}', ""), ('{"GracefulExit": 1', ""), ("[1]", ""),
                         ('{"GracefulExit": 1}', f"GracefulExit in {asked}")):  # fmt: skip
        asked.write_text(text, encoding="utf-8")
        assert clock.reasons(clock.ranks[0]._next + 1, 2.0) == {reason}, text
    asked.unlink()
    assert clock.reasons(clock.ranks[0]._next + 1, 2.0) == {""}


def test_ranks_compare_notes_about_once_a_second():
    clock = Clock([StopRequest(), StopRequest()])
    clock.reasons(1, 0.01)
    calls = clock.calls
    for step in range(2, 1 + int(CHECK_S / 0.01)):
        assert clock.reasons(step, 0.01) == {""}
    assert clock.calls == calls
    clock.reasons(1 + int(CHECK_S / 0.01), 0.01)
    assert clock.calls > calls


def test_the_time_limit_leaves_room_for_the_step_and_the_checkpoint():
    request = StopRequest(time.time() + 100)
    alone = StopAgreement(request, None, is_first=True, is_alone=True, checkpoint_bytes=200_000_000 * 20)
    assert alone.reason(1, 10.0) == ""
    alone.saved_in(50.0)
    assert alone.reason(2, 10.0) == "the time limit"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("3h30m", 12600), ("11:55:00", 42900), ("1-00:00:10", 86410)],
)
def test_times_are_read_as_people_and_slurm_write_them(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0s", "1:30", "-5m", "3h 30m"])
def test_other_times_are_refused(text):
    with pytest.raises(UsageError, match="write 30m, 3h30m or 11:55:00"):
        parse_duration(text)


@pytest.mark.parametrize("value", [1.9e192, -1e300, float("inf"), float("-inf"), float("nan"), 3.5e38])
def test_no_value_is_too_large_for_the_event_file(tmp_path, value):
    events = EventFile(tmp_path, after_step=0)
    events.write(0, {"eval_perplexity": value})
    events.close()


@pytest.fixture
def start(tmp_path):
    prefix = write_tokens(tmp_path / "tiny_text_document", counting_documents(2000), eod_id=1)

    def run(out, steps, *arguments, **changes):
        values = tiny_run(tmp_path / out, prefix, resume_training="auto", **changes)
        values["train_dataset"]["data_loader"]["sizes"] = [4 * steps, 0, 0]
        values["callbacks"][1]["save_checkpoint_steps"] = 100_000
        config = write_yaml(tmp_path / f"{out}.yaml", values)
        command = [sys.executable, "-m", "qwen3_train", "launch", "--config", str(config), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


def wait_for_step(process, out, step):
    deadline_s = time.monotonic() + LONGEST_S
    while not (out / "metrics.jsonl").exists() or len(read_metrics(out / "metrics.jsonl")) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def losses(out):
    return [(line["step"], line["loss"]) for line in read_metrics(out / "metrics.jsonl")]


@pytest.mark.slow
def test_a_process_that_is_asked_to_end_saves_and_goes_on_as_the_unbroken_one(start, tmp_path):
    steps, out = ENDLESS, tmp_path / "out"
    process = start("out", steps)
    wait_for_step(process, out, 5)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 75
    taken = len(losses(out))
    assert f"ended by SIGTERM: step {taken} is saved" in told
    assert (out / "checkpoint" / "rank_0" / f"qwen3_rank_0-1_{taken}.safetensors").is_file()
    limited = start("out", steps, "--max-time", "1s")  # over before the first step
    told, _ = limited.communicate(timeout=LONGEST_S)
    assert limited.returncode == 75
    assert f"after step {taken}" in told
    assert "ended by the time limit" in told
    shutil.copytree(out, tmp_path / "whole")
    end = ("--callbacks.2.stop_step", str(taken + 5))
    for folder, arguments in (("out", ()), ("whole", ("--force", "--seed", "7"))):
        values = {"callbacks": [{"type": "MFLossMonitor"}, {"type": "CheckpointMonitor"},
                                {"type": "TrainCallBack", "stop_step": 1}]}  # fmt: skip
        process = start(folder, steps, *end, *arguments, **values)
        told, error = process.communicate(timeout=LONGEST_S)
        assert process.returncode == 0, told + error
    assert losses(out) == losses(tmp_path / "whole")
    assert len(losses(out)) == taken + 5


@pytest.mark.slow
def test_a_file_that_asks_for_it_ends_a_run_and_refuses_the_next_start(start, tmp_path):
    out, asked = tmp_path / "out", tmp_path / "exit.json"
    exit_callback = {"type": "OnRequestExit", "config_file": str(asked)}
    callbacks = [{"type": "MFLossMonitor"}, {"type": "CheckpointMonitor"}, exit_callback]
    process = start("out", ENDLESS, callbacks=callbacks)
    wait_for_step(process, out, 3)
    asked.write_text('{"GracefulExit": 1}', encoding="utf-8")
    told, _ = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 75
    assert f"ended by GracefulExit in {asked}: step {len(losses(out))} is saved" in told
    again = start("out", ENDLESS, callbacks=callbacks)
    assert f"{asked} says GracefulExit: 1, which ends a run; set it to 0" in again.communicate()[1]
    assert again.returncode == 1


@pytest.mark.slow
def test_ranks_that_are_all_signalled_save_the_same_step(start, tmp_path):
    out = tmp_path / "out"
    layout = {"use_parallel": True, "parallel_config": {"model_parallel": 2}}
    process = start("out", ENDLESS, "--worker-num", "2", **layout)
    wait_for_step(process, out, 5)
    workers = [path.read_text() for path in (out / "msrun_log").glob(".*.state.json")]
    for text in workers:  # scheduler included, as scancel does
        os.kill(int(text.split('"pid": ')[1].split(",")[0]), signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    told, error = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 75, told + error
    assert "ended by SIGTERM, the steps taken are saved; the same command goes on" in told
    taken = len(losses(out))
    for rank in (0, 1):
        assert (out / "checkpoint" / f"rank_{rank}" / f"qwen3_rank_{rank}-1_{taken}.safetensors").is_file()


@pytest.mark.slow
def test_a_folder_that_vanishes_is_an_error_and_not_the_end_of_the_run(start, tmp_path):
    out = tmp_path / "out"
    process = start("out", ENDLESS, "--callbacks.1.save_checkpoint_steps", "100")
    wait_for_step(process, out, 3)
    shutil.rmtree(out)
    told, error = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 1
    assert f"{out} was removed or moved while the run was going on" in error
    assert "finished" not in told
