"""Pipeline stages side by side: each is a plain generator, run in a thread of its own."""

import queue
import threading
import time
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


class Stage(Generic[Item]):
    """A generator, its thread and the queue that leads out of it; iterate over it to read the queue."""

    def __init__(self, items: Iterator[Item], depth: int) -> None:
        self.busy_s = 0.0
        """Time inside the generator, its waiting for the stage before included."""
        self.waited_s = 0.0
        """Time that the reader waited for items."""
        self._items = items
        self._waiting: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._produce, daemon=True)
        self._thread.start()

    def __iter__(self) -> "Stage[Item]":
        return self

    def __next__(self) -> Item:
        begin_s = time.perf_counter()
        item = self._waiting.get()
        self.waited_s += time.perf_counter() - begin_s
        if not isinstance(item, _End):
            return item
        self._waiting.put(item)  # a reader that asks again gets the same answer
        if item.error is not None:
            raise item.error
        raise StopIteration

    def _produce(self) -> None:
        error: BaseException | None = None
        try:
            while True:
                begin_s = time.perf_counter()
                item = next(self._items)
                self.busy_s += time.perf_counter() - begin_s
                if not self._put(item):
                    break
        except StopIteration:
            pass
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

    def stop(self) -> None:
        """End the thread at its next item."""
        self._unwanted.set()
        # A stage may wait for stdin, which nobody can wake; it computes, but writes nothing.
        self._thread.join(timeout=JOIN_S)


@contextmanager
def run_ahead(items: Iterator[Item], depth: int) -> Iterator[Stage[Item]]:
    """Run `items` in a thread, at most `depth` items ahead of their reader.

    An exception of the generator is raised at the reader, after the items before it; leaving the block stops
    the thread and closes the generator.
    """
    stage = Stage(items, depth)
    try:
        yield stage
    finally:
        stage.stop()
