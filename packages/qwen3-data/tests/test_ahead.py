"""Stages run ahead of their reader, in order, and end with it."""

import threading

import pytest

from qwen3_data.encode.ahead import run_ahead


def test_items_come_in_order():
    with run_ahead(iter(range(50)), 3) as items:
        assert list(items) == list(range(50))
        assert list(items) == []


def test_a_stage_runs_at_most_its_depth_ahead():
    made = []
    begun = threading.Event()

    def count():
        for number in range(10):
            made.append(number)
            if number == 3:
                begun.set()
            yield number

    with run_ahead(count(), 2) as items:
        assert next(items) == 0
        assert begun.wait(5)
        # One taken, two waiting, one that does not fit.
        assert made == [0, 1, 2, 3]


def test_an_error_is_raised_at_the_reader_after_the_items_before_it():
    def fail():
        yield 1
        raise ValueError("broken")

    with run_ahead(fail(), 2) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="broken"):
            next(items)


def test_leaving_early_closes_the_generator():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with run_ahead(endless(), 1) as items:
        next(items)
    assert closed.wait(5)


def test_an_error_passes_through_a_chain_of_stages():
    def fail():
        raise OSError("disk")
        yield

    with (
        run_ahead(fail(), 1) as first,
        run_ahead((item for item in first), 1) as second,
        pytest.raises(OSError, match="disk"),
    ):
        next(second)
