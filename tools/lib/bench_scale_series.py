"""A cost at growing sizes, and the law that fits it."""

import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

DEFAULT_OPEN_FILES = 1024
"""What most systems let a process open, unless somebody raises it."""
Fit = Callable[[Sequence[float], Sequence[float], float], tuple[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A row of the table."""

    what: str
    unit: str
    sizes: Sequence[int]
    costs: Sequence[float]
    target: float
    """Size of the job that the page is about."""
    fit: Fit | None = None
    """`of_power` unless told."""

    def line(self) -> str:
        """Return the row in Markdown."""
        law, at_size = (self.fit or of_power)(self.sizes, self.costs, self.target)
        pairs = zip(self.sizes, self.costs, strict=True)
        measured = ", ".join(f"{size:,}: {cost:,.3g}" for size, cost in pairs)
        return f"| {self.what} | {self.unit} | {measured} | {law} | {self.target:,.0f}: {at_size:,.3g} |"


def of_power(sizes: Sequence[float], costs: Sequence[float], target: float) -> tuple[str, float]:
    """Return the power of the size that fits best (least squares of logarithms), and the cost at `target`."""
    law = float(np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-9)), 1)[0])
    return f"n^{law + 0:.2f}".replace("-0.00", "0.00"), costs[-1] * (target / sizes[-1]) ** law


def straight(sizes: Sequence[float], costs: Sequence[float], target: float) -> tuple[str, float]:
    """Return the best straight line, where a part does not grow, and the cost at `target`."""
    slope, rest = np.polyfit(sizes, costs, 1)
    return f"{rest:.3g} + {slope:.3g} n", float(rest + slope * target)


def cpu_s(call: Callable[[], object]) -> float:
    """Return the CPU seconds of this process that `call` takes."""
    began = time.process_time()
    call()
    return time.process_time() - began


@contextmanager
def open_files_limited(limit: int = DEFAULT_OPEN_FILES) -> Iterator[None]:
    """Let this process and those that it starts open no more than `limit` files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def one_thread() -> dict[str, str]:
    """Return the environment of a process that is measured."""
    return os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
