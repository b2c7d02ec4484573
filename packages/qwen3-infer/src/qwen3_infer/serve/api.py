"""The endpoints that compute: chat completions and completions, whole or as a stream of events."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from qwen3_infer.schedule.jobs import Event
from qwen3_infer.serve.answers import Answer
from qwen3_infer.serve.errors import ApiError
from qwen3_infer.serve.http import ClientGoneError, Limits, Record, read_json, until_gone
from qwen3_infer.serve.metrics import Metrics
from qwen3_infer.serve.requests import ApiRequest
from qwen3_infer.serve.service import Service
from qwen3_infer.serve.worker import Ticket, Worker
from qwen3_model.errors import Qwen3Error

MOST_READ_AT_ONCE = 2
T = TypeVar("T")
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy in between must not collect the pieces
]


class Reading:
    """The stage before the queue, in which prompts are tokenised: a few at a time, no more than may wait."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._room, self._num = worker, asyncio.Semaphore(MOST_READ_AT_ONCE), 0

    async def run(self, understand: Callable[[], T]) -> T:
        """Return what `understand` does on a thread: long prompts take a while, others' tokens must not wait.

        Raises:
            ApiError: Too many requests are in this stage or behind it.
        """
        self._worker.check_room(self._num + 1)
        self._num += 1
        try:
            async with self._room:
                return await asyncio.to_thread(understand)
        finally:
            self._num -= 1


class Conversions:
    """Answer requests that need the tokenizer alone; `convert` makes the answer of a body."""

    def __init__(
        self,
        convert: Callable[[object, Service], dict[str, object]],
        service: Service,
        limits: Limits,
        reading: Reading,
    ) -> None:
        self._convert, self._service, self._limits, self._reading = convert, service, limits, reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise ApiError(
                405, "this path takes POST alone", code="method_not_allowed", headers={"allow": "POST"}
            )
        body = await read_json(HttpRequest(scope, receive), self._limits)
        answer = await self._reading.run(lambda: self._convert(body, self._service))
        async with asyncio.timeout(self._limits.send_timeout_s):
            await JSONResponse(answer)(scope, receive, send)


class Completions:
    """Answer requests of one kind; `understand` makes an `ApiRequest` of a body."""

    def __init__(
        self,
        understand: Callable[[object, Service], ApiRequest],
        service: Service,
        worker: Worker,
        metrics: Metrics,
        limits: Limits,
        reading: Reading,
        make_answer: type[Answer] = Answer,
    ) -> None:
        self._make_answer = make_answer
        self._reading = reading
        self._understand, self._service, self._worker = understand, service, worker
        self._metrics, self._limits = metrics, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["record"]
        if scope["method"] != "POST":
            raise ApiError(
                405, "this path takes POST alone", code="method_not_allowed", headers={"allow": "POST"}
            )
        body = await read_json(HttpRequest(scope, receive), self._limits)
        request = await self._reading.run(lambda: self._understand(body, self._service))
        answer = self._make_answer(request, self._service.name, self._service.folder.tokenizer)
        record.facts |= {
            "id": answer.id,
            "stream": request.stream,
            "prompt_tokens": request.num_prompt_tokens,
        }
        ticket = self._worker.submit(request.requests)
        try:
            work = self._stream if request.stream else self._send_whole
            await until_gone(receive, work(request, answer, ticket, scope, receive, send))
        finally:
            self._worker.cancel(ticket)
            self._note(answer, record)

    async def _send_whole(
        self, request: ApiRequest, answer: Answer, ticket: Ticket, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async for _ in self._chunks(answer, ticket, scope["record"]):
            pass
        async with asyncio.timeout(self._limits.send_timeout_s):
            await JSONResponse(answer.whole())(scope, receive, send)

    async def _stream(
        self, request: ApiRequest, answer: Answer, ticket: Ticket, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send a stream of events; what goes wrong before the first token still has its own status."""
        chunks = self._chunks(answer, ticket, scope["record"])
        first = await anext(chunks)
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        for chunk in (*answer.first_chunks(), *first):
            await self._send_event(send, answer, chunk)
        try:
            async for later in chunks:
                for chunk in later:
                    await self._send_event(send, answer, chunk)
            for chunk in answer.last_chunks():
                await self._send_event(send, answer, chunk)
            await self._send(send, answer.end.encode())
        except ApiError as error:
            scope["record"].facts["error"] = error.code
            await self._send_event(send, answer, answer.error_chunk(error))
        # A stream that is cut short for another reason has no proper end, so that its client knows.
        await self._send(send, b"", is_last=True)

    async def _send_event(self, send: Send, answer: Answer, chunk: dict[str, object]) -> None:
        await self._send(send, answer.frame(chunk).encode())

    async def _send(self, send: Send, body: bytes, *, is_last: bool = False) -> None:
        """Send a piece; a client that does not take it in time is taken for gone."""
        try:
            async with asyncio.timeout(self._limits.send_timeout_s):
                await send({"type": "http.response.body", "body": body, "more_body": not is_last})
        except TimeoutError:
            raise ClientGoneError from None

    async def _chunks(
        self, answer: Answer, ticket: Ticket, record: Record
    ) -> AsyncIterator[list[dict[str, object]]]:
        """Yield the chunks of each token until every choice is whole."""
        deadline_s = asyncio.get_running_loop().time() + self._limits.request_timeout_s
        while not answer.is_done:
            event = await self._next_event(ticket, deadline_s)
            if isinstance(event, Exception):
                reason = str(event) if isinstance(event, Qwen3Error) else "the model failed; the log says why"
                raise ApiError(500, reason, code="model_error")
            if record.first_token_s is None:
                record.first_token_s = time.monotonic() - record.started_s
                record.facts["first_token_s"] = round(record.first_token_s, 4)
                self._metrics.first_token_s.observe(record.first_token_s)
            yield list(answer.add(event))

    async def _next_event(self, ticket: Ticket, deadline_s: float) -> Event | Exception:
        """Return the next event; `deadline_s` is the event loop's time by which the answer must be whole."""
        if not ticket.has_started and ticket.events.empty():
            in_time_s = asyncio.get_running_loop().time() + self._limits.queue_timeout_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(in_time_s, deadline_s)):
                    return await ticket.events.get()
            if not ticket.has_started and in_time_s <= deadline_s:
                raise self._worker.busy(f"there was no room within {self._limits.queue_timeout_s:g} s")
        try:
            async with asyncio.timeout_at(deadline_s):
                return await ticket.events.get()
        except TimeoutError:
            raise ApiError(
                504, f"the answer took more than {self._limits.request_timeout_s:g} s", code="timeout"
            ) from None

    def _note(self, answer: Answer, record: Record) -> None:
        """Count a request that is over, whichever way."""
        elapsed_s = time.monotonic() - record.started_s
        metrics = self._metrics
        metrics.request_s.observe(elapsed_s)
        record.facts |= {
            "completion_tokens": answer.num_tokens,
            "shared_tokens": answer.num_shared,
            "finish": ",".join(reason or "unfinished" for reason in answer.finish_reasons),
        }
        num_later = answer.num_tokens - len(answer.choices)
        if answer.is_done and num_later > 0 and record.first_token_s is not None:
            self._worker.observe(elapsed_s)
            per_token_s = (elapsed_s - record.first_token_s) * len(answer.choices) / num_later
            metrics.token_s.observe(per_token_s)
