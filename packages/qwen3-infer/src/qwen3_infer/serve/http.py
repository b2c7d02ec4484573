"""What all HTTP answers have in common: who may ask, how much, how long, and one log line each."""

import asyncio
import hmac
import json
import re
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen3_infer.serve.errors import ApiError
from qwen3_infer.serve.metrics import Metrics

MOST_HEADER_BYTES, MOST_HEADERS = 32 * 1024, 200
LOCAL_HOST = re.compile(r"(localhost|127(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}|\[::1\])(:\d*)?", re.IGNORECASE)
PATHS = (
    "/", "/health", "/ping", "/version", "/metrics", "/openapi.json", "/docs", "/tokenize", "/detokenize",
    "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses",
)  # fmt: skip
OPEN_PATHS = ("/", "/health", "/ping", "/openapi.json", "/docs")
"""What needs no key: the page, which asks for it, the health, and what is the same everywhere."""
T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed its connection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much and how long a client may."""

    max_body_bytes: int
    """Largest body."""
    body_timeout_s: float
    """Longest time in which a client sends its body."""
    send_timeout_s: float
    """Longest time in which a client takes a piece of the answer."""
    request_timeout_s: float
    """Longest time of a whole answer."""
    queue_timeout_s: float
    """Longest time that a request waits for room in the cache."""


@dataclass(eq=False, slots=True)
class Record:
    """What is known of a request when it has been answered; no text of it."""

    started_s: float = field(default_factory=time.monotonic)
    status: int = 0
    first_token_s: float | None = None
    """Seconds from its beginning to the first token."""
    facts: dict[str, object] = field(default_factory=dict)


class Gate:
    """Let in who may come in, and write a line about each request.

    Without an API key a server that is bound to this very machine answers to its local names only: a page of
    another site cannot reach the model by a name of its own that leads here.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        is_local: bool,
        metrics: Metrics,
        log: Callable[[str], None],
    ) -> None:
        self._app, self._is_local, self._metrics, self._log = app, is_local, metrics, log
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record()
        scope["record"] = record
        scope["path"] = scope["path"].rstrip("/") or "/"
        scope["app"] = self  # so that a router raises what it refuses, and this answers in the usual form

        async def note_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            self._check(HttpRequest(scope))
            await self._app(scope, receive, note_status)
        except ApiError as error:
            if record.status == 0:
                await error_response(error)(scope, receive, note_status)
        except HTTPException as error:
            refusal = ApiError(
                error.status_code,
                f"this path does not take {scope['method']}",
                code="method_not_allowed",
                headers=error.headers,
            )
            await error_response(refusal)(scope, receive, note_status)
        except ClientGoneError:
            record.status = record.status or 499  # nobody sees it
            record.facts["client_gone"] = True
            self._metrics.disconnects.inc()
        except Exception as error:  # of our own making: said here, not to the client
            self._log(json.dumps({"error": repr(error), "traceback": traceback.format_exc()}))
            if record.status:
                raise  # uvicorn closes the connection, so that the client knows
            await error_response(ApiError(500, "the server failed; its log says why"))(
                scope, receive, note_status
            )
        finally:
            self._finish(scope, record)

    def _check(self, request: HttpRequest) -> None:
        """Raise unless the request may come in."""
        headers = request.headers.raw
        if len(headers) > MOST_HEADERS or sum(len(n) + len(v) for n, v in headers) > MOST_HEADER_BYTES:
            raise ApiError(
                431, f"more than {MOST_HEADERS} headers, or more than {MOST_HEADER_BYTES} bytes of them"
            )
        if self._key is None:
            # As it was sent: what is no host at all must not count as this one. HTTP/1.0 may do without.
            host = request.headers.get("host", "localhost")
            if self._is_local and not LOCAL_HOST.fullmatch(host):
                raise ApiError(403, "without an API key this server answers to localhost and 127.0.0.1 only")
            return
        if request.scope["path"] in OPEN_PATHS:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # In constant time, whatever the length.
        is_right = hmac.compare_digest(key.strip().encode("latin-1"), self._key)
        if scheme.lower() != "bearer" or not is_right:
            raise ApiError(
                401,
                "Incorrect API key provided; send it as Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    def _finish(self, scope: Scope, record: Record) -> None:
        # A bounded number of names, whatever clients ask for.
        path = scope["path"] if scope["path"] in PATHS else "other"
        self._metrics.requests.labels(path, str(record.status or 500)).inc()
        if path in ("/health", "/ping", "/metrics"):
            return
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": path,
            "status": record.status or 500,
            "seconds": round(time.monotonic() - record.started_s, 4),
        }
        self._log(json.dumps(line | record.facts))


def error_response(error: ApiError) -> JSONResponse:
    """Return the answer that says what is wrong."""
    headers = error.headers
    if error.status in (408, 413, 431):
        headers["connection"] = "close"  # the rest of the body is not wanted
    return JSONResponse(error.body(), error.status, headers)


async def read_json(request: HttpRequest, limits: Limits) -> object:
    """Return the body of a request as JSON.

    Raises:
        ApiError: It is too large, too slow or no JSON.
        ClientGoneError: It never came whole.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Another site's page cannot send this type without asking first, and is not answered.
        raise ApiError(415, "send the body as Content-Type: application/json")
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            raw = await _read_body(request, limits.max_body_bytes)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {limits.body_timeout_s:g} s") from None
    try:
        return json.loads(raw)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


async def _read_body(request: HttpRequest, max_bytes: int) -> bytes:
    too_large = ApiError(413, f"the body is larger than {max_bytes} bytes", code="request_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    parts, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise too_large
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Return what `work` does, or stop it when the client leaves. The body must have been read.

    Raises:
        ClientGoneError: The client left first.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
