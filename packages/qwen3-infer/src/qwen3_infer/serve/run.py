"""A whole run of `qwen3-infer serve`: refuse early, load, compile, answer until asked to stop."""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwen3_infer.device import Device
from qwen3_infer.processes.shared_model import Sharing, open_model
from qwen3_infer.settings.settings import RunSettings, make_decoding, open_run_folder
from qwen3_infer.text.utf8 import is_utf8
from qwen3_model.command.plain_text import counted, one_line
from qwen3_model.errors import Qwen3Error, UsageError

if TYPE_CHECKING:
    from qwen3_infer.serve.service import Service
    from qwen3_infer.serve.worker import Worker

HEAD_TIMEOUT_S = 10.0
"""Longest time in which a client sends a request's head; `send_timeout_s` when that is shorter."""


MOST_WAITING = 1024
"""Connections that the system keeps until they are accepted, a tenth of a second's worth."""
CHECK_S = 0.5
"""How often the server looks whether the processes that share the model out still run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """Settings of the server besides the model and the sampling."""

    host: str
    """Address to bind to."""
    port: int
    """Port, or 0 for any that is free."""
    api_key: str | None
    """What clients must send."""
    insecure: bool
    """Whether others than this machine may come without a key."""
    model_name: str | None
    """Name of the model for clients; the folder's name when None."""
    max_requests: int
    """Sequences that are computed together."""
    max_tokens_in_cache: int
    """Room for all of them."""
    max_queue: int
    """Sequences that wait for room."""
    max_connections: int
    """Connections that are open together."""
    max_body_bytes: int
    """Largest body of a request."""
    request_timeout_s: float
    """Longest time of a whole answer."""
    queue_timeout_s: float
    """Longest time that a request waits for room."""
    send_timeout_s: float
    """Longest time in which a client takes a piece of the answer."""
    drain_timeout_s: float
    """Seconds that running requests have when the server is asked to stop."""


def run_serve(
    settings: RunSettings,
    serve: ServeSettings,
    device: Device,
    *,
    quiet: bool,
    note: Callable[[str], None],
    launch: Sharing = None,
) -> None:
    """Serve until SIGTERM or SIGINT; what can be refused is refused before MindSpore is imported.

    With `launch` the model is shared out over other processes, and this one answers.

    Raises:
        Qwen3Error: The settings, the folder or the address cannot work, or another process has ended.
    """
    _refuse_open_door(serve)
    say, note = note, lambda text: say(one_line(text))
    folder = open_run_folder(settings)
    name = serve.model_name or folder.path.resolve().name
    if not is_utf8(name):
        raise UsageError(f"the model's name {name!r} is no UTF-8; give clients another one as --model-name")
    decoding = replace(make_decoding(settings, folder.defaults, folder.config.vocab_size), num_sequences=1)
    folder.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    for text in settings.notes:
        note(text)
    with (
        bound(serve.host, serve.port) as door,
        open_model(folder, device, launch, quiet=quiet, note=note) as model,
    ):
        from qwen3_infer.schedule.scheduler import Scheduler
        from qwen3_infer.serve.service import Service
        from qwen3_infer.serve.worker import Worker

        context_tokens = min(folder.config.max_position_embeddings, serve.max_tokens_in_cache)
        engine = model.serve_engine(serve.max_requests, serve.max_tokens_in_cache, context_tokens)
        scheduler = Scheduler(engine, folder.tokenizer)
        context_tokens = min(folder.config.max_position_embeddings, engine.longest)
        service = Service(
            folder=folder,
            name=name,
            defaults=decoding,
            thinking=settings.thinking,
            context_tokens=context_tokens,
            grammars=scheduler.grammars,
            token_bytes=folder.tokenizer.longest_token_bytes(),
        )
        worker = Worker(scheduler, max_queue=serve.max_queue, note=note)
        note(
            f"{service.name}: {counted(engine.num_rows, 'request')} at once, "
            f"{counted(engine.num_tokens, 'token')} in the cache, "
            f"{context_tokens} of one request"
        )
        serve_app(service, worker, serve, door, note, model.check)


def _refuse_open_door(serve: ServeSettings) -> None:
    if serve.api_key is None and not serve.insecure and not is_loopback(serve.host):
        raise UsageError(
            f"--host {serve.host} lets other machines in, and there is no API key; give --api-key, or "
            "--insecure to let anyone in"
        )


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Bind before the model is loaded, so that a port in use is known at once; nobody can connect yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        door = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host} is no address of this machine: {error}") from None
    with door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(address)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                f"--host {host} --port {port} cannot be bound: {reason}; choose another"
            ) from None
        yield door


def serve_app(
    service: "Service",
    worker: "Worker",
    serve: ServeSettings,
    door: socket.socket,
    note: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Answer at `door` until asked to stop, then let running requests finish."""
    import uvicorn

    from qwen3_infer.serve.app import make_app
    from qwen3_infer.serve.http import MOST_HEADER_BYTES, Limits
    from qwen3_infer.serve.log import LINES_AT_ONCE, LINES_PER_S, Throttle, write_faults
    from qwen3_infer.serve.protocol import connection_limits, make_protocol

    connections = connection_limits(serve.max_connections)
    limits = Limits(
        max_body_bytes=serve.max_body_bytes,
        body_timeout_s=serve.send_timeout_s,
        send_timeout_s=serve.send_timeout_s,
        request_timeout_s=serve.request_timeout_s,
        queue_timeout_s=serve.queue_timeout_s,
    )
    app = make_app(
        service,
        worker,
        limits,
        api_key=serve.api_key,
        is_local=is_loopback(serve.host),
        is_draining=lambda: server.should_exit,
        log=Throttle(note, at_once=LINES_AT_ONCE, per_s=LINES_PER_S),
    )
    config = uvicorn.Config(
        app,
        http=make_protocol(connections, min(HEAD_TIMEOUT_S, serve.send_timeout_s)),
        backlog=connections.backlog,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        timeout_graceful_shutdown=max(1, round(serve.drain_timeout_s)),
    )
    server = uvicorn.Server(config)
    start = server.startup

    async def start_with_queue(sockets: list[socket.socket] | None = None) -> None:
        await start(sockets)
        # asyncio accepts as many at once as it lets wait, so it gets a small number; the system may let more
        # wait, so that a burst of connections does not make others ask again after a second.
        door.listen(MOST_WAITING)

    server.startup = start_with_queue  # type: ignore[method-assign]
    # uvicorn's own handlers would end the process by the signal, not with 0.
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]

    async def end_with_the_model() -> None:
        while not server.should_exit:
            await asyncio.sleep(CHECK_S)
            try:
                check()
            except Qwen3Error:
                server.should_exit = True

    async def run() -> None:
        loop = asyncio.get_running_loop()
        write_faults(loop, logging.getLogger("uvicorn.error"), note)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.handle_exit, number, None)
        worker.start(loop)
        door.listen(config.backlog)  # who reads the next line may connect at once
        host, port = door.getsockname()[:2]
        ending = asyncio.create_task(end_with_the_model())
        note(f"serving {service.name} on http://{f'[{host}]' if ':' in host else host}:{port}")
        await server.serve([door])
        ending.cancel()

    asyncio.run(run())
    worker.stop(timeout_s=5)
    check()
    note("stopped")
