"""Who is served when, with an engine that writes down what it is asked for and checks where it is written."""

import numpy as np
import pytest

from qwen3_infer.schedule.scheduler import MOST_READ_BETWEEN, Scheduler
from qwen3_infer.steps.pieces import ALIGN
from qwen3_model.errors import ConfigError

VOCAB = 4096


class Ledger:
    """A cache of ids: what a token's logits favour depends on all ids up to it, so that any mix-up shows."""

    unit, shares_beginnings = ALIGN, True
    pieces = (128, 32)

    def __init__(self, num_rows, num_tokens):
        self.num_rows, self.num_tokens = num_rows, num_tokens
        self.cache = np.zeros(num_tokens + ALIGN, np.int64)
        self.calls = []

    def read(self, start, ids, position, length):
        assert start + position + length <= self.num_tokens
        self.cache[start + position : start + position + length] = 0
        self.cache[start + position : start + position + len(ids)] = ids
        self.calls.append(("read", start, len(ids)))
        return self._after(start, position + len(ids))

    def decode(self, starts, tokens, positions):
        self.cache[starts + positions] = tokens
        self.calls.append(("decode", *starts.tolist()))
        return np.stack([self._after(start, at + 1) for start, at in zip(starts, positions, strict=True)])

    def copy(self, source, target, num_tokens):
        self.cache[target : target + num_tokens] = self.cache[source : source + num_tokens]
        self.calls.append(("copy", source, num_tokens))

    def _after(self, start, count):
        logits = np.zeros(VOCAB, np.float32)
        logits[expected(self.cache[start : start + count])] = 1.0
        return logits

    def num_read(self):
        return sum(call[2] for call in self.calls if call[0] == "read")


def expected(ids):
    return (1 + sum((place + 1) * int(number) for place, number in enumerate(ids))) % VOCAB


def completion_of(request):
    ids = list(request.prompt_ids)
    for _ in range(request.max_new_tokens):
        ids.append(expected(ids))
    return tuple(ids[len(request.prompt_ids) :])


class NoText:
    def decode(self, ids):
        return ""


@pytest.fixture
def requests(make_request):
    """Return 40 requests of mixed lengths, a third of which begin alike."""
    rng = np.random.default_rng(5)
    common = rng.integers(1, VOCAB, 100).tolist()
    made = []
    for index in range(40):
        own = rng.integers(1, VOCAB, rng.integers(1, 200)).tolist()
        ids = common + own if index % 3 == 0 else own
        made.append(make_request(ids, index=index, new_tokens=int(rng.integers(1, 40))))
    return made


def run(scheduler):
    done = {}
    while not scheduler.is_idle:
        for event in scheduler.advance():
            if event.completion:
                done[event.job.request.index] = event.completion
    return done


@pytest.mark.parametrize("num_tokens", [384, 1024, 8192])
def test_every_request_gets_its_own_tokens_however_small_the_cache(requests, num_tokens):
    engine = Ledger(6, num_tokens)
    scheduler = Scheduler(engine, NoText())
    for request in requests:
        scheduler.submit(request)
    done = run(scheduler)
    assert {index: each.ids for index, each in done.items()} == {
        each.index: completion_of(each) for each in requests
    }
    assert scheduler.pool.num_used == 0


def test_requests_that_join_and_leave_at_any_time_change_nobodys_tokens(requests):
    engine = Ledger(5, 2048)
    scheduler = Scheduler(engine, NoText())
    rng = np.random.default_rng(6)
    left, jobs, done, cancelled = list(requests), [], {}, set()
    while left or not scheduler.is_idle:
        if left and rng.random() < 0.3:
            jobs.append(scheduler.submit(left.pop(0)))
        if jobs and rng.random() < 0.05:
            job = jobs[rng.integers(len(jobs))]
            scheduler.cancel(job)
            cancelled.add(job.request.index)
        for event in scheduler.advance():
            if event.completion:
                done[event.job.request.index] = event.completion.ids
    assert done.items() <= {each.index: completion_of(each) for each in requests}.items()
    assert {each.index for each in requests} == done.keys() | cancelled
    assert len(done) > 20
    assert scheduler.pool.num_used == 0


def test_a_common_beginning_is_read_once_even_by_requests_that_come_together(make_request):
    engine = Ledger(4, 4096)
    scheduler = Scheduler(engine, NoText())
    common = list(range(1, 1 + 10 * ALIGN))
    for index in range(4):
        scheduler.submit(make_request([*common, 100 + index], index=index, new_tokens=3))
    done = run(scheduler)
    assert engine.num_read() == len(common) + 4
    assert [done[index].num_shared for index in range(4)] == [0] + 3 * [len(common)]
    scheduler.submit(make_request([*common, 7, 8], index=9, new_tokens=3))
    assert run(scheduler)[9].num_shared == len(common)


def test_a_cancelled_leader_hands_on_what_it_has_read(make_request):
    engine = Ledger(4, 8192)
    scheduler = Scheduler(engine, NoText())
    common = list(range(1, 1001))
    leader = scheduler.submit(make_request([*common, 5], new_tokens=3))
    follower = make_request([*common, 6], index=1, new_tokens=3)
    scheduler.submit(follower)
    scheduler.advance()
    scheduler.advance()
    scheduler.cancel(leader)
    done = run(scheduler)
    assert done[1].ids == completion_of(follower)
    assert done[1].num_shared == 256


def test_running_requests_move_while_a_long_prompt_is_read(make_request):
    engine = Ledger(4, 8192)
    scheduler = Scheduler(engine, NoText())
    scheduler.submit(make_request([1], new_tokens=100))
    scheduler.advance()
    engine.calls.clear()
    scheduler.submit(make_request(range(4000), index=1, new_tokens=2))
    run(scheduler)
    kinds = [call[0] for call in engine.calls]
    last_read = len(kinds) - kinds[::-1].index("read")
    # One piece of the long prompt, one token of the running request.
    assert kinds[:last_read].count("decode") >= kinds.count("read") - 1


def test_a_short_prompt_is_read_before_the_next_piece_of_a_long_one(make_request):
    engine = Ledger(4, 8192)
    scheduler = Scheduler(engine, NoText())
    scheduler.submit(make_request(range(6000), new_tokens=2))
    scheduler.advance()
    scheduler.submit(make_request([3, 4], index=1, new_tokens=1))
    (event,) = scheduler.advance()
    assert event.completion.request.index == 1


def test_short_prompts_that_keep_coming_do_not_keep_a_long_one_waiting(make_request):
    engine = Ledger(4, 8192)
    scheduler = Scheduler(engine, NoText())
    long = scheduler.submit(make_request(range(6000), new_tokens=2))
    for index in range(1, 101):
        scheduler.submit(make_request([index, 4], index=index, new_tokens=1))
        scheduler.advance()
    assert long.num_read == 6000


def test_many_that_wait_for_their_first_token_are_read_before_the_few_that_run_go_on(make_request):
    engine = Ledger(32, 32 * 64)
    scheduler = Scheduler(engine, NoText())
    for index in range(32):
        scheduler.submit(make_request([index + 1], index=index, new_tokens=20))
    run(scheduler)
    kinds = [call[0] for call in engine.calls]
    # Fewer than one step for each of the 32 prompts on top of the 19 that the last one needs.
    assert kinds.count("decode") <= 19 + 24
    between = max(sum(1 for kind in chunk if kind == "read") for chunk in split(kinds, "decode"))
    assert between * ALIGN <= MOST_READ_BETWEEN


def split(kinds, mark):
    chunks = [[]]
    for kind in kinds:
        if kind == mark:
            chunks.append([])
        else:
            chunks[-1].append(kind)
    return chunks


def test_a_request_larger_than_the_cache_is_refused_with_the_numbers(make_request):
    scheduler = Scheduler(Ledger(2, 128), NoText())
    with pytest.raises(
        ConfigError, match="100 tokens with 50 new ones takes 160 tokens of a cache that has 128"
    ):
        scheduler.submit(make_request(range(100), new_tokens=50))


def test_requests_wait_in_their_order_until_there_is_room(make_request):
    engine = Ledger(8, 256)
    scheduler = Scheduler(engine, NoText())
    for index, length in enumerate([120, 120, 10]):
        scheduler.submit(make_request(range(1, length + 1), index=index, new_tokens=8))
    scheduler.advance()
    assert (len(scheduler.waiting), scheduler.pool.num_used) == (1, 256)
    assert list(run(scheduler)) == [0, 1, 2]


def test_a_request_without_room_is_compared_again_only_once_room_was_given_back(make_request, monkeypatch):
    compared = []
    monkeypatch.setattr(
        "qwen3_infer.schedule.allocation.count_equal", lambda first, second: compared.append(1) or 0
    )
    scheduler = Scheduler(Ledger(4, 8 * ALIGN), NoText())
    for index, new_tokens in enumerate((2 * ALIGN, 4 * ALIGN)):
        scheduler.submit(make_request(range(1, 3 * ALIGN), index=index, new_tokens=new_tokens))
    while not scheduler.running:
        scheduler.advance()
    assert (len(compared), len(scheduler.waiting)) == (1, 1)
    while scheduler.waiting:
        before = len(compared)
        scheduler.advance()
        assert len(compared) == before or not scheduler.waiting
    assert len(compared) == 2
