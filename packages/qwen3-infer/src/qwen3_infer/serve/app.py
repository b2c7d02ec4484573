"""The server's paths."""

import time
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen3_infer import __version__
from qwen3_infer.serve import openapi
from qwen3_infer.serve.api import Completions, Conversions, Reading
from qwen3_infer.serve.errors import ApiError
from qwen3_infer.serve.http import Gate, Limits
from qwen3_infer.serve.metrics import CONTENT_TYPE, Metrics
from qwen3_infer.serve.page import make_page
from qwen3_infer.serve.requests import read_chat, read_completion
from qwen3_infer.serve.responses_answer import ResponsesAnswer
from qwen3_infer.serve.responses_request import read_response
from qwen3_infer.serve.service import Service
from qwen3_infer.serve.tokens import detokenize, tokenize
from qwen3_infer.serve.worker import Worker


def make_app(
    service: Service,
    worker: Worker,
    limits: Limits,
    *,
    api_key: str | None,
    is_local: bool,
    is_draining: Callable[[], bool],
    log: Callable[[str], None],
) -> ASGIApp:
    """Return the whole application.

    Args:
        service: The model.
        worker: Computes; started by who runs the application.
        limits: Limits of each request.
        api_key: What clients must send, if anything.
        is_local: Whether the server is bound to this machine alone.
        is_draining: Whether the server is about to end.
        log: Is given a line of JSON for each request.
    """
    metrics = Metrics()
    metrics.watch(worker)
    created = int(time.time())

    def describe(name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": created, "owned_by": "qwen3-infer"}

    async def models(request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [describe(service.name)]})

    async def model(request: HttpRequest) -> Response:
        if request.path_params["name"] != service.name:
            raise ApiError(404, f"this server has {service.name!r} alone", code="model_not_found")
        return JSONResponse(describe(service.name))

    async def health(request: HttpRequest) -> Response:
        status = "draining" if is_draining() else "failing" if worker.has_failed else "ok"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def show_metrics(request: HttpRequest) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    document = openapi.describe(__version__, service.name)
    docs = HTMLResponse(
        openapi.page(__version__, service.name), headers={"content-security-policy": "default-src 'none'"}
    )
    reading = Reading(worker)
    completions = partial(
        Completions, service=service, worker=worker, metrics=metrics, limits=limits, reading=reading
    )
    conversions = partial(Conversions, service=service, limits=limits, reading=reading)
    routes = [
        Route("/", _answer_always(make_page())),
        Route("/health", health),
        Route("/ping", health),
        Route("/version", _answer_always(JSONResponse({"version": __version__}))),
        Route("/openapi.json", _answer_always(JSONResponse(document))),
        Route("/docs", _answer_always(docs)),
        Route("/tokenize", conversions(tokenize)),
        Route("/detokenize", conversions(detokenize)),
        Route("/metrics", show_metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", completions(read_chat)),
        Route("/v1/completions", completions(read_completion)),
        Route("/v1/responses", completions(read_response, make_answer=ResponsesAnswer)),
    ]
    app = Router(routes, default=_not_found, redirect_slashes=False)
    return Gate(app, api_key=api_key, is_local=is_local, metrics=metrics, log=log)


def _answer_always(response: Response) -> Callable[[HttpRequest], Awaitable[Response]]:
    """Return an endpoint that always answers the same."""

    async def show(request: HttpRequest) -> Response:
        return response

    return show


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiError(404, f"there is no path {scope['path']}", code="not_found")
