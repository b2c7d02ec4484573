"""How often a launcher looks at its workers' records, which lie on a file system that all nodes share."""

import time
from collections.abc import Sequence
from pathlib import Path

from qwen3_model.ranks.msrun.processes import is_alive
from qwen3_model.ranks.msrun.records import RUNNING, WorkerRecord, read_records

YOUNG_S = 60.0
"""A job of that age has started; until then every look reads."""
SELDOM_S = 1.0
"""Between two reads later on, unless a worker's process has ended."""


class RecordLook:
    """The records of a node's workers, read anew when that can tell something."""

    def __init__(self, log_dir: Path, names: Sequence[str]) -> None:
        self._log_dir, self._names = log_dir, names
        self._started_s, self._read_s = time.monotonic(), float("-inf")
        self._records: dict[str, WorkerRecord] = {}

    def records(self, *, at_once: bool) -> dict[str, WorkerRecord]:
        """Return the records; read them where `at_once` says so, too."""
        now_s = time.monotonic()
        is_due = now_s - self._started_s < YOUNG_S or now_s - self._read_s >= SELDOM_S
        # The processes are this machine's own, and to look at them costs the others nothing.
        if at_once or is_due or any(map(_is_gone, self._records.values())):
            self._records, self._read_s = read_records(self._log_dir, self._names), now_s
        return self._records


def _is_gone(record: WorkerRecord) -> bool:
    return record.state == RUNNING and not is_alive(record.pid)
