"""How samples become steps; the number of a step alone says which samples it takes.

A step takes the next `global_batch` samples in the dataset's order, and an epoch is as many whole steps as
the data give. Samples are what is counted: a run that goes on with another global batch begins at the sample
where it left off (`Start`), and the rest of that epoch is cut into steps of the new size.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run stood when its global batch changed; all zero from the beginning."""

    steps: int = 0
    """Steps taken, in all epochs."""
    epoch: int = 0
    """Epochs begun before the current one."""
    samples: int = 0
    """Samples taken of the current epoch."""
    steps_in_epoch: int = 0
    """Steps taken of the current epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """How samples become steps."""

    micro_batch: int
    """Rows of one forward pass."""
    num_micro_batches: int
    """Forward passes of one step on each replica."""
    num_replicas: int = 1
    """Data-parallel replicas."""
    num_samples: int
    """Samples of one epoch."""
    num_epochs: int
    start: Start = Start()
    """Where the run stood when its steps got this size."""

    @property
    def global_batch(self) -> int:
        """Samples of one step."""
        return self.micro_batch * self.num_micro_batches * self.num_replicas

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps that a whole epoch's samples give."""
        return self.num_samples // self.global_batch

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        later = self.num_epochs - self.start.epoch - 1
        return self.start.steps + self._steps_left + max(later, 0) * self.steps_per_epoch

    def steps_of(self, epoch: int) -> int:
        """Return the steps of an epoch, counted from 1."""
        is_first = epoch == self.start.epoch + 1
        return self.start.steps_in_epoch + self._steps_left if is_first else self.steps_per_epoch

    def epoch_and_step(self, step: int) -> tuple[int, int]:
        """Return the epoch of the `step`-th step and its number there, all counted from 1."""
        epoch, _, within = self._locate(step)
        return epoch + 1, within + 1

    def samples(self, step: int) -> range:
        """Return the sample numbers of the `step`-th step, counted from 1."""
        _, first, _ = self._locate(step)
        return range(first, first + self.global_batch)

    def after(self, step: int) -> Start:
        """Return where a run stands after a step."""
        epoch, first, within = self._locate(step)
        return Start(step, epoch, first + self.global_batch, within + 1)

    @property
    def _steps_left(self) -> int:
        """Steps of the epoch in which the plan begins."""
        return (self.num_samples - self.start.samples) // self.global_batch

    def _locate(self, step: int) -> tuple[int, int, int]:
        """Return the epoch, its first sample and the step's number in the epoch, all counted from 0."""
        ahead = step - 1 - self.start.steps
        if ahead < self._steps_left:
            first = self.start.samples + ahead * self.global_batch
            return self.start.epoch, first, self.start.steps_in_epoch + ahead
        epochs, within = divmod(ahead - self._steps_left, self.steps_per_epoch)
        return self.start.epoch + 1 + epochs, within * self.global_batch, within
