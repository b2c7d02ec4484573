"""Write several files at once, in threads: the kernel and numpy copy without Python's lock."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

Count = Callable[[float], None]
# Each worker holds a few pieces of rows.PIECE_BYTES.
MAX_WORKERS = 4


def run_all(jobs: Sequence[Callable[[Count], None]], count: Count, workers: int | None = None) -> None:
    """Run every job with a counter of its progress; when one fails, stop the others and raise its error.

    Args:
        jobs: What to run; each calls the counter often.
        count: Hears of every amount, from one thread at a time.
        workers: Jobs at a time; by default one per processor, at most MAX_WORKERS.
    """
    lock, stop = threading.Lock(), threading.Event()

    def count_alone(amount: float) -> None:
        if stop.is_set():
            raise CancelledError
        with lock:
            count(amount)

    failures: list[BaseException] = []

    def run(job: Callable[[Count], None]) -> None:
        if stop.is_set():
            return
        try:
            job(count_alone)
        except CancelledError:
            return  # stopped by another's failure
        except BaseException as error:
            failures.append(error)
            # Here and not in the waiting thread, which may be woken only after more jobs have begun.
            stop.set()

    with ThreadPoolExecutor(min(workers or os.cpu_count() or 1, MAX_WORKERS)) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            wait(futures)
        except BaseException:
            # The pool waits for its threads when it is left, also after a signal.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        raise failures[0]
