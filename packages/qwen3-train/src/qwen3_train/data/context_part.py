"""A rank's part of each sample where several ranks share the sequence.

The sequence is cut into two chunks for each rank; rank r takes chunks r and 2 size - 1 - r, so that all have
the same number of keys to look at (Dubey et al. 2024, Llama 3, 3.3.2).

B samples, L tokens of a sample, C = L / (2 * size) of a chunk.
"""

from dataclasses import dataclass

import numpy as np

from qwen3_model.ranks.layout import Layout
from qwen3_train.data.batches import Batch


@dataclass(frozen=True, slots=True)
class ContextPart:
    """One of `size` parts of each sample that a replica takes."""

    index: int = 0
    size: int = 1
    replica: int = 0
    """Which of the `data_parallel` replicas' samples these are."""

    @classmethod
    def of_rank(cls, layout: Layout, replica: int) -> "ContextPart":
        """Return the part of the rank that is number `replica` of those with the same weights."""
        return cls(replica % layout.cp, layout.cp, replica // layout.cp)

    @property
    def chunks(self) -> tuple[int, int]:
        """The numbers of its chunks in the sequence, of which `size` is half the number."""
        return self.index, 2 * self.size - 1 - self.index

    def part_of(self, batch: Batch) -> Batch:
        """Return the part of a batch: the samples' first chunks, then their second ones, (2 * B, C).

        Positions are those in the whole samples. Segments stay whole, (B, L): kernels need those of all keys.
        """
        if self.size == 1:
            return batch
        b, length = batch.input_ids_BL.shape
        positions_BL = batch.position_ids_BL
        if positions_BL is None:
            positions_BL = np.broadcast_to(np.arange(length, dtype=np.int32), (b, length))
        return Batch(
            self._cut(batch.input_ids_BL),
            self._cut(batch.labels_BL),
            self._cut(batch.weights_BL),
            self._cut(positions_BL),
            batch.segment_ids_BL,
        )

    def _cut(self, x_BL: np.ndarray) -> np.ndarray:
        size = x_BL.shape[1] // (2 * self.size)
        return np.concatenate([x_BL[:, chunk * size : (chunk + 1) * size] for chunk in self.chunks])
