"""uvicorn's HTTP with limits: on connections, in all and of one address, and on the time for a head."""

import asyncio
import contextlib
import resource
from dataclasses import dataclass
from pathlib import Path

from uvicorn.protocols.http.h11_impl import H11Protocol

from qwen3_model.errors import UsageError

MOST_BACKLOG = 128
"""Connections that are accepted at once."""
OWN_DESCRIPTORS = 32
"""Descriptors kept for files that the process opens besides those open already."""
TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections there may be."""

    in_all: int
    """Most from all addresses together."""
    of_address: int
    """Most from one client address."""
    backlog: int
    """Most that wait to be accepted."""


def connection_limits(wanted: int) -> ConnectionLimits:
    """Let the process open as many files as the system allows, and return limits that leave some of them.

    Args:
        wanted: Most connections together; fewer when the system allows fewer files.

    Raises:
        UsageError: There is no room for connections at all.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems set a lower limit of their own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    backlog = MOST_BACKLOG if soft == resource.RLIM_INFINITY else max(1, min(MOST_BACKLOG, soft // 8))
    # asyncio accepts a whole backlog at once before a connection can be closed again, and closes it later.
    reserve = sum(1 for _ in Path("/proc/self/fd").iterdir()) + OWN_DESCRIPTORS + 2 * backlog
    in_all = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - reserve)
    if in_all < 2:
        raise UsageError(
            f"the process may open {soft} files, which leaves none for connections; raise it with ulimit -n"
        )
    return ConnectionLimits(in_all, max(1, in_all // 2), backlog)


class Connections:
    """The connections of a server, by address, the oldest first.

    When there are too many, the one that has waited longest for a request makes room for the new one; so who
    opens many and asks nothing keeps nobody out.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._by_address: dict[str, dict[TimedProtocol, None]] = {}
        self._num = 0

    def enter(self, connection: "TimedProtocol", address: str) -> bool:
        """Count a new connection in, unless there is no room for it."""
        own = self._by_address.get(address, {})
        if len(own) >= self._limits.of_address and not self._make_room(address):
            return False
        if self._num >= self._limits.in_all:
            most = max(self._by_address, key=lambda each: len(self._by_address[each]))
            if not self._make_room(most):
                return False
        self._by_address.setdefault(address, {})[connection] = None
        self._num += 1
        return True

    def leave(self, connection: "TimedProtocol", address: str) -> None:
        """Count a connection out, if it is still counted."""
        own = self._by_address.get(address, {})
        if connection in own:
            del own[connection]
            self._num -= 1
            if not own:
                del self._by_address[address]

    def _make_room(self, address: str) -> bool:
        oldest = next((each for each in self._by_address[address] if each.is_waiting), None)
        if oldest is None:
            return False
        self.leave(oldest, address)
        oldest.transport.abort()
        return True


class TimedProtocol(H11Protocol):
    """Closes a connection on which no head of a request comes whole within about `head_timeout_s`.

    uvicorn itself waits for ever for the first request, and for a later one that comes byte by byte.
    """

    head_timeout_s: float
    open_connections: Connections
    _seen: object = None
    _timer: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        if not self.open_connections.enter(self, self._address):
            transport.write(TURNED_AWAY)
            transport.close()
            return
        self._timer = self.loop.call_later(self.head_timeout_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.leave(self, self._address)
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays open for an answer although its client sends no more.

        What only reads is answered at once. A client that waits for tokens and ends its side has most likely
        gone, and nothing is computed for it any more.
        """
        if self.is_waiting or self.scope["method"] != "GET":
            return False
        self.cycle.keep_alive = False
        return True

    def _look(self) -> None:
        """Close the connection if it still waits for the request that it waited for at the last look."""
        if self.is_waiting and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle if self.is_waiting else self
        self._timer = self.loop.call_later(self.head_timeout_s, self._look)


def make_protocol(limits: ConnectionLimits, head_timeout_s: float) -> type[TimedProtocol]:
    """Return the protocol of one server."""
    attributes = {"head_timeout_s": head_timeout_s, "open_connections": Connections(limits)}
    return type("ServerProtocol", (TimedProtocol,), attributes)
