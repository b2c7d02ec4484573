"""Instruction data of several datasets in given shares."""

from collections.abc import Sequence

import numpy as np

from qwen3_train.data.blend_order import weighted_order
from qwen3_train.data.gpt_dataset import Sample
from qwen3_train.data.sft_dataset import SftDataset, SftSamples


class SftBlend:
    """Samples of several datasets, always of the one most behind its share, as blends of token files.

    A dataset goes on where it stood: it is read whole, in its order of that pass, before it begins anew, over
    the ends of epochs.
    """

    def __init__(self, datasets: Sequence[SftDataset], weights: Sequence[float], num_samples: int) -> None:
        self.datasets = list(datasets)
        self.seq_length, self.pad_id = datasets[0].seq_length, datasets[0].pad_id
        self._files_N, self._numbers_N = weighted_order(weights, num_samples)
        self._per_epoch = np.bincount(self._files_N, minlength=len(self.datasets))

    def __len__(self) -> int:
        return len(self._files_N)

    def sample(self, number: int, epoch: int = 0) -> Sample:
        """Return a row, as SftDataset does."""
        file = int(self._files_N[number])
        dataset = self.datasets[file]
        taken = epoch * int(self._per_epoch[file]) + int(self._numbers_N[number])
        own_epoch, own_number = divmod(taken, len(dataset))
        return dataset.sample(own_number, own_epoch)


def join_samples(parts: Sequence[SftSamples]) -> SftSamples:
    """Return the packs of all parts, one part after the other."""
    offsets = np.cumsum([0, *(len(part.lengths_S) for part in parts)])
    firsts = [part.firsts_P[:-1] + offset for part, offset in zip(parts, offsets[:-1].tolist(), strict=True)]
    return SftSamples(
        np.concatenate([np.asarray(part.ids_T, np.int32) for part in parts]),
        np.concatenate([part.mask_T for part in parts]),
        np.concatenate([part.lengths_S for part in parts]),
        np.concatenate([*firsts, offsets[-1:]]).astype(np.int64),
    )
