"""uvicorn's HTTP, with a limit on how long a client may take for the head of a request."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


def make_protocol(timeout_s: float) -> type[H11Protocol]:
    """Return a protocol that closes a connection on which no request comes whole within about `timeout_s`.

    uvicorn itself waits for ever for the first request, and for a later one that comes byte by byte.
    """

    class TimedProtocol(H11Protocol):
        _seen: object = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._timer = self.loop.call_later(timeout_s, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            """Close the connection if it still waits for the request that it waited for at the last look."""
            cycle = self.cycle
            is_waiting = cycle is None or cycle.response_complete
            if is_waiting and cycle is self._seen:
                self.transport.close()
                return
            self._seen = cycle if is_waiting else self
            self._timer = self.loop.call_later(timeout_s, self._look)

    return TimedProtocol
