"""Pipeline stages side by side: each is a plain generator, run in a thread of its own."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")

JOIN_S = 2.0
WAIT_S = 0.1
"""How often a full queue looks whether anybody still wants its items."""


class _End:
    """Closes a queue; carries the exception that ended the stage, if one did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Stage(Generic[Item]):
    """A generator, its thread and the queue that leads out of it."""

    def __init__(self, items: Iterator[Item], depth: int) -> None:
        self._items = items
        self._waiting: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._produce, daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as caught:
            error = caught
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
        self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._unwanted.is_set():
            try:
                self._waiting.put(item, timeout=WAIT_S)
            except queue.Full:
                continue
            return True
        return False

    def consume(self) -> Iterator[Item]:
        while not isinstance(item := self._waiting.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    def stop(self) -> None:
        self._unwanted.set()
        # A stage may wait for stdin, which nobody can wake; it computes, but writes nothing.
        self._thread.join(timeout=JOIN_S)


@contextmanager
def run_ahead(items: Iterator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """Run `items` in a thread, at most `depth` items ahead of their reader.

    An exception of the generator is raised at the reader, after the items before it; leaving the block stops
    the thread and closes the generator.
    """
    stage = _Stage(items, depth)
    try:
        yield stage.consume()
    finally:
        stage.stop()
