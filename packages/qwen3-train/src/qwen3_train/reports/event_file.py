"""TensorBoard's event files, through tensorboardX."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

LARGEST = 3.4028234663852886e38
"""Largest float32, the type of numbers in event files."""


class EventFile:
    """Append scalars to a new file of `directory`.

    The library's `SummaryWriter` hands events to a thread, and its `flush` does not wait for that.
    """

    def __init__(self, directory: Path, *, after_step: int) -> None:
        """Open the file; `after_step` is the last step that older files may speak of, 0 for a new run."""
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        if after_step:  # TensorBoard forgets what other files say of this step and later ones
            log = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=after_step + 1, session_log=log))
        self._writer.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the values of a step, at once; what is beyond float32 becomes its largest number."""
        for tag, value in scalars.items():
            if not math.isnan(value):
                summary = scalar(tag, max(-LARGEST, min(LARGEST, value)))
                self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
