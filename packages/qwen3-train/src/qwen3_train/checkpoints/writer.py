"""One rank's checkpoints in turn, written at once or in a thread beside the training.

Either way old ones go only after the new one is whole on every rank. At once, that is in the same call. In a
thread, ranks cannot meet while others train, so it is when the next one begins, or at the end.
"""

from collections.abc import Callable, Iterable, Set
from pathlib import Path
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from qwen3_model.checkpoints.checkpoint_files import EpochStep
from qwen3_model.errors import Qwen3Error
from qwen3_train.checkpoints.checkpoint import FloatTensor, TrainState, remove_old, save_checkpoint


class CheckpointWriter:
    """Saves into `checkpoint/rank_R`; has at most one checkpoint under way."""

    def __init__(
        self,
        rank_dir: Path,
        stem: str,
        keep_max: int,
        *,
        in_thread: bool,
        share: Set[str] | None = None,
        wait_for_others: Callable[[], object],
        log: Callable[[str], object],
    ) -> None:
        """Make ready.

        Args:
            rank_dir: `checkpoint/rank_R`.
            stem: `<prefix>_rank_R`.
            keep_max: Checkpoints to keep.
            in_thread: Copy the tensors and go on at once.
            share: Names of the tensors that this rank writes; None for all that it has.
            wait_for_others: Returns when all ranks have called it.
            log: Takes a sentence when a checkpoint is whole.
        """
        self.rank_dir, self.stem, self.keep_max, self.in_thread = rank_dir, stem, keep_max, in_thread
        self.share = share
        self.wait_for_others, self.log = wait_for_others, log
        self.on_whole: Callable[[], object] | None = None
        """Called when a checkpoint is whole on every rank."""
        self._thread: Thread | None = None
        self._epoch_step: EpochStep | None = None
        self._failure: Exception | None = None

    def save(self, epoch_step: EpochStep, state: TrainState, tensors: Iterable[FloatTensor]) -> None:
        """Write a checkpoint, or begin to; waits for the one before.

        Raises:
            Qwen3Error: The one before has failed, or this one, where it is written at once.
        """
        self.finish()
        self._epoch_step = epoch_step
        if self.share is not None:
            tensors = [tensor for tensor in tensors if tensor.name in self.share]
        if not self.in_thread:
            self._write(epoch_step, state, tensors)
            self.finish()
            return
        copies = [_copy_tensor(tensor) for tensor in tensors]
        self._thread = Thread(target=self._write, args=(epoch_step, state, copies), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise Qwen3Error when the checkpoint under way has failed."""
        if isinstance(self._failure, OSError):
            raise Qwen3Error(
                f"a checkpoint in {self.rank_dir} could not be written or removed "
                f"({self._failure.strerror}); the last whole one is there, make room and continue from it "
                "with --resume_training True"
            ) from self._failure
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Wait until the checkpoint under way is whole on every rank, then remove old ones; all call this.

        Raises:
            Qwen3Error: It has failed.
        """
        self.close()
        self.check()
        if self._epoch_step is not None:
            self.wait_for_others()
            epoch_step, self._epoch_step = self._epoch_step, None
            try:
                remove_old(self.rank_dir, epoch_step, self.keep_max)
                if self.on_whole is not None:
                    self.on_whole()
            except OSError as error:
                self._failure = error
            self.check()

    def close(self) -> None:
        """Wait for this rank's thread, whatever becomes of the others."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, epoch_step: EpochStep, state: TrainState, tensors: Iterable[FloatTensor]) -> None:
        try:
            path = save_checkpoint(
                self.rank_dir, self.stem, epoch_step, state, tensors, is_shared=self.share is not None
            )
        except Exception as error:
            # `check` raises it, in the thread that trains.
            self._failure = error
        else:
            self.log(f"saved {path}")


def _copy_tensor(tensor: FloatTensor) -> FloatTensor:
    # On a CPU the array is the parameter's own memory, which the next step changes.
    values: NDArray[np.float32] = np.array(tensor.read())
    return FloatTensor(tensor.name, tensor.shape, lambda: values)
