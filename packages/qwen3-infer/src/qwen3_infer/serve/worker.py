"""The thread that computes: requests go in from the event loop, tokens come out to it."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qwen3_infer.schedule.jobs import Event, Job
from qwen3_infer.schedule.requests import Request
from qwen3_infer.schedule.scheduler import Scheduler
from qwen3_infer.serve.errors import ApiError
from qwen3_model.errors import ConfigError


@dataclass(eq=False, slots=True)
class Ticket:
    """What a client has in the queue or running: one job for each choice."""

    events: "asyncio.Queue[Event | Exception]" = field(default_factory=asyncio.Queue)
    """Tokens of all choices, as they come; an exception ends them all."""
    jobs: list[Job] = field(default_factory=list)
    is_cancelled: bool = False
    has_started: bool = False
    """Whether a job has room in the cache, so that it is no longer queued."""


class Worker:
    """Owns the scheduler; only its thread touches it."""

    def __init__(self, scheduler: Scheduler, *, max_queue: int, note: Callable[[str], None]) -> None:
        """Make a worker that lets `max_queue` jobs wait for room; `note` gets a sentence for each failure."""
        self._scheduler, self._max_queue, self._note = scheduler, max_queue, note
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tickets: dict[Job, Ticket] = {}
        # The event loop counts the first, the thread the others. A job is never between two of them, as it is
        # for a moment between the scheduler's lists.
        self._num_submitted = self._num_entered = self._num_ended = 0
        self._seconds_per_job = 1.0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.count: Callable[[Event], None] = lambda _: None
        """Called on the thread with each event, also when nobody waits for it any more."""
        self.has_failed = False
        """Whether the model's last call raised; a call that succeeds takes it back."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to compute; events are delivered on `loop`."""
        self._loop = loop
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread, once what runs is done or cancelled."""
        self._inbox.put(None)
        self._thread.join(timeout_s)

    @property
    def num_waiting(self) -> int:
        """Jobs without room in the cache."""
        return len(self._scheduler.waiting) + self._num_submitted - self._num_entered

    @property
    def num_running(self) -> int:
        """Jobs with room in the cache."""
        return len(self._scheduler.reading) + len(self._scheduler.running)

    @property
    def cache_tokens(self) -> tuple[int, int]:
        """Tokens of the cache that are in use, and all."""
        return self._scheduler.pool.num_used, self._scheduler.pool.num_tokens

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Put requests into the queue. Called on the event loop.

        Raises:
            ApiError: The queue is full, or the cache can never hold a request.
        """
        try:
            for request in requests:
                self._scheduler.check(request)
        except ConfigError as error:
            raise ApiError(400, str(error), code="context_length_exceeded") from None
        if len(requests) > self.most_jobs:
            raise ApiError(
                400,
                f"{len(requests)} completions at once are more than the {self.most_jobs} that may wait here",
            )
        self.check_room(len(requests))
        ticket = Ticket()
        self._num_submitted += len(requests)
        self._inbox.put(lambda: self._enter(ticket, requests))
        return ticket

    def check_room(self, count: int) -> None:
        """Raise ApiError when so many more jobs would be more than may wait. Called on the event loop."""
        if self._num_submitted - self._num_ended + count > self.most_jobs:
            raise self.busy("the server's queue is full")

    @property
    def most_jobs(self) -> int:
        """Jobs that may wait or run."""
        return self._max_queue + self._scheduler.num_rows

    def busy(self, reason: str) -> ApiError:
        """Return the answer to a request that cannot be served now, with an estimate of when it can."""
        rounds = (self.num_waiting + 1) / self._scheduler.num_rows
        retry_after_s = int(min(60, max(1, rounds * self._seconds_per_job)))
        return ApiError(
            429,
            f"{reason}; try again in {retry_after_s} s",
            code="rate_limit_exceeded",
            retry_after_s=retry_after_s,
        )

    def cancel(self, ticket: Ticket) -> None:
        """End a ticket's jobs and free their room, after the model's present call."""
        if not ticket.is_cancelled:
            ticket.is_cancelled = True
            self._inbox.put(lambda: self._leave(ticket))

    def _enter(self, ticket: Ticket, requests: Sequence[Request]) -> None:
        self._num_entered += len(requests)
        if ticket.is_cancelled:
            self._num_ended += len(requests)
            return
        for request in requests:
            job = self._scheduler.submit(request)
            ticket.jobs.append(job)
            self._tickets[job] = ticket

    def _leave(self, ticket: Ticket) -> None:
        for job in ticket.jobs:
            if self._tickets.pop(job, None):
                self._num_ended += 1
                self._scheduler.cancel(job)

    def _work(self) -> None:
        while True:
            try:
                order = self._inbox.get(block=self._scheduler.is_idle)
            except queue.Empty:
                pass
            else:
                if order is None:
                    return
                order()
                continue
            try:
                events = self._scheduler.advance()
                self.has_failed = False
            except Exception as error:  # what the model may raise has no common class
                self._fail(error)
            else:
                self._deliver(events)

    def _deliver(self, events: Sequence[Event]) -> None:
        for job in self._scheduler.reading:
            self._tickets[job].has_started = True
        tickets = []
        for event in events:
            ticket = self._tickets[event.job]
            ticket.has_started = True
            self.count(event)
            tickets.append((ticket, event.error or event))
            if event.completion or event.error:
                del self._tickets[event.job]
                self._num_ended += 1
        self._send(tickets)

    def _fail(self, error: Exception) -> None:
        """Send the failure to every client, and begin anew with an empty cache."""
        self._note(f"the model failed: {error}")
        self.has_failed = True
        self._scheduler.cancel_all()
        tickets = set(self._tickets.values())
        self._num_ended += len(self._tickets)
        self._tickets.clear()
        self._send([(ticket, error) for ticket in tickets])

    def _send(self, tickets: Sequence[tuple[Ticket, Event | Exception]]) -> None:
        if not tickets:
            return

        def put() -> None:
            for ticket, event in tickets:
                ticket.events.put_nowait(event)

        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(put)

    def observe(self, seconds: float) -> None:
        """Update the mean time of a job, from which `busy` estimates."""
        self._seconds_per_job += (seconds - self._seconds_per_job) / 8
