"""A job that starts again by itself: how often, from where, and when not."""

from types import SimpleNamespace

import pytest

from qwen3_model.errors import Qwen3Error, UsageError
from qwen3_train.launch.restarts import require_restartable, run_with_restarts


def job(*outcomes):
    """Return a function that fails or ends as told, and the runs that it was started with."""
    left, started = list(outcomes), []

    def start(run):
        started.append(run.name)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return start, started


def prepared(*names, finished=()):
    runs = iter(SimpleNamespace(name=name, is_finished=name in finished) for name in names)
    return lambda: next(runs)


FIRST = SimpleNamespace(name="first", is_finished=False)


def test_each_start_goes_on_from_what_is_newest_then():
    start, started = job(Qwen3Error("rank 1 was killed"), Qwen3Error("rank 0 failed"), "SIGTERM")
    said = []
    assert run_with_restarts(start, FIRST, prepared("second", "third"), 5, said.append) == "SIGTERM"
    assert started == ["first", "second", "third"]
    assert said[0] == "rank 1 was killed; starting again, 1 of at most 5 times"


def test_the_last_failure_is_the_jobs():
    start, started = job(*[Qwen3Error(f"failure {number}") for number in range(3)])
    with pytest.raises(Qwen3Error, match="failure 2"):
        run_with_restarts(start, FIRST, prepared("second", "third"), 2, lambda text: None)
    assert len(started) == 3
    start, started = job(Qwen3Error("at once"))
    with pytest.raises(Qwen3Error, match="at once"):
        run_with_restarts(start, FIRST, prepared(), 0, lambda text: None)


def test_a_run_whose_last_checkpoint_was_written_is_not_started_again():
    start, started = job(Qwen3Error("rank 1 was killed"))
    again = prepared("second", finished=["second"])
    assert run_with_restarts(start, FIRST, again, 2, lambda text: None) == ""
    assert started == ["first"]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"is_alone": True, "mode": "auto", "force": False}, "is for several processes"),
        ({"is_alone": False, "mode": "always", "force": False}, "needs resume_training: auto"),
        ({"is_alone": False, "mode": "auto", "force": True}, "and no --force"),
    ],
)
def test_what_cannot_go_on_by_itself_is_refused(how, sentence):
    with pytest.raises(UsageError, match=sentence):
        require_restartable(1, **how)
    require_restartable(0, **how)
