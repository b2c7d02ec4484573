import threading
import time

import pytest

from qwen3_ckpt.engine.parallel import run_all
from qwen3_model.errors import WeightError


def test_a_job_that_fails_stops_the_others_and_raises_its_error():
    stopped, started = threading.Event(), threading.Event()

    def endless(count):
        started.set()
        try:
            while True:
                count(1)
                time.sleep(0.001)
        finally:
            stopped.set()

    def failing(_):
        started.wait(5)
        raise WeightError("no")

    with pytest.raises(WeightError, match="no"):
        run_all([endless, failing], lambda _: None, workers=2)
    assert stopped.is_set()


def test_jobs_that_have_not_begun_when_one_fails_never_begin():
    begun = []

    def failing(_):
        raise WeightError("no")

    with pytest.raises(WeightError):
        run_all([failing, *[lambda count: begun.append(count(1))] * 20], lambda _: None, workers=1)
    assert len(begun) <= 1  # one may have been taken before the failure was seen; its counter stops it


def test_progress_is_counted_once_for_each_amount():
    total = []
    jobs = [lambda count: [count(1) for _ in range(1000)]] * 4
    run_all(jobs, total.append, workers=4)
    assert len(total) == 4000
