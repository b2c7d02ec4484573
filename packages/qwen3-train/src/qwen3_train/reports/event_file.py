"""TensorBoard's event files, through tensorboardX."""

import math
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

LARGEST = 3.4028234663852886e38
"""Of float32, which is what event files hold."""


class EventFile:
    """Append scalars to a new file of `directory`."""

    def __init__(self, directory: Path, *, after_step: int) -> None:
        """Open the file; `after_step` is the last step that older files may speak of, 0 for a new run."""
        # TensorBoard forgets what other files say of the step to purge and later ones.
        self._writer = SummaryWriter(str(directory), purge_step=after_step + 1 if after_step else None)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the values of a step, at once; what is beyond float32 becomes its largest number."""
        for tag, value in scalars.items():
            if not math.isnan(value):
                self._writer.add_scalar(tag, max(-LARGEST, min(LARGEST, value)), step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
