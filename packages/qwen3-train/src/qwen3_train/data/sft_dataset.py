"""Training samples of instruction data: labels shifted once, conversations kept apart, the rest padding.

T tokens of all packs back to back, S conversations, P packs, L tokens of a sample.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_model.command.file_map import read_mapped
from qwen3_model.errors import FormatError
from qwen3_train.data.gpt_dataset import DocumentOptions, Sample

SHIFTED = DocumentOptions(
    eod=None, pad=-1, eod_mask_loss=False, reset_position_ids=True, separate_documents=True
)
"""What `SftDataset` gives: positions from 0 in each conversation, no attention across them."""


@dataclass(frozen=True, slots=True)
class SftSamples:
    """Conversations in packs, before the shift; a conversation that a pack cuts counts as two."""

    ids_T: NDArray[np.integer]
    mask_T: NDArray[np.uint8]
    """1 for each token that is to be predicted."""
    lengths_S: NDArray[np.int32]
    """Tokens of each conversation."""
    firsts_P: NDArray[np.int64]
    """First conversation of each pack, and one more entry for the end: P + 1 of them."""

    def digest(self) -> str:
        """Return a hash of all that the samples hold."""
        digest = hashlib.sha256()
        for array in (self.ids_T, self.mask_T, self.lengths_S, self.firsts_P):
            digest.update(str((array.dtype, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class SftDataset:
    """Packs as rows of `seq_length` tokens, in the order of the data or shuffled anew for every epoch."""

    def __init__(self, samples: SftSamples, seq_length: int, pad_id: int, shuffle_seed: int | None) -> None:
        self.samples, self.seq_length, self.pad_id = samples, seq_length, pad_id
        self.begins_S = np.concatenate([[0], np.cumsum(samples.lengths_S, dtype=np.int64)])
        self._seed = shuffle_seed
        self._ordered_epoch, self._order_P = -1, np.arange(len(self))

    def __len__(self) -> int:
        return len(self.samples.firsts_P) - 1

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the packs in their order in an epoch, counted from 0; it depends on seed and epoch alone."""
        if self._seed is not None and epoch != self._ordered_epoch:
            self._order_P = np.random.default_rng([self._seed, epoch]).permutation(len(self))
            self._ordered_epoch = epoch
        return self._order_P

    def sample(self, number: int, epoch: int = 0) -> Sample:
        """Return a row: position t has loss where token t + 1 of the same conversation is to be predicted."""
        pack = int(self.order(epoch)[number])
        first, last = self.samples.firsts_P[pack : pack + 2].tolist()
        lengths = self.samples.lengths_S[first:last]
        part = slice(int(self.begins_S[first]), int(self.begins_S[last]))
        try:
            ids_T, mask_T = read_mapped(self.samples.ids_T[part]), read_mapped(self.samples.mask_T[part])
        except EOFError:
            raise FormatError(
                "a file of instruction data was cut while the run was reading it; make it again and start "
                "the run again"
            ) from None
        count = len(ids_T)
        input_ids_L = np.full(self.seq_length, self.pad_id, np.int32)
        input_ids_L[:count] = ids_T
        # Padding is one more document, so that no real token is seen from it or sees it.
        documents_L = np.full(self.seq_length, len(lengths), np.int32)
        documents_L[:count] = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        labels_L = np.full(self.seq_length, self.pad_id, np.int32)
        labels_L[: max(count - 1, 0)] = ids_T[1:]
        loss_mask_L = np.zeros(self.seq_length, np.float32)
        is_inner_T = documents_L[: count - 1] == documents_L[1:count]
        loss_mask_L[: max(count - 1, 0)] = (mask_T[1:] == 1) & is_inner_T
        starts_L = np.repeat(
            np.concatenate([[0], np.cumsum(lengths)]), [*lengths.tolist(), self.seq_length - count]
        )
        positions_L = np.arange(self.seq_length, dtype=np.int32) - starts_L.astype(np.int32)
        return Sample(input_ids_L, labels_L, loss_mask_L, positions_L, documents_L)
