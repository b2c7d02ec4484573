"""Which samples each step takes, stacked into arrays.

A step takes the next `global_batch` samples in the dataset's order; an epoch is as many whole steps as the
data give, and every epoch takes the same samples in the same order, as mindformers does, unless shuffled
conversations have an order for each. So the step number alone is the data's position, and resuming needs no
other state.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen3_model.errors import FormatError
from qwen3_train.data.batch_plan import BatchPlan
from qwen3_train.data.gpt_dataset import (
    BlendedDataset,
    DocumentOptions,
    GptData,
    GptDataset,
    Sample,
    make_sample,
)
from qwen3_train.data.sft_blend import SftBlend
from qwen3_train.data.sft_dataset import SftDataset

Dataset = GptData | SftDataset | SftBlend


@dataclass(frozen=True, slots=True)
class Batch:
    """Arguments of the loss: one micro-batch. B rows, L tokens."""

    input_ids_BL: NDArray[np.int32]
    labels_BL: NDArray[np.int32]
    weights_BL: NDArray[np.float32]
    """Loss mask, in the end over the unmasked tokens of the whole step."""
    position_ids_BL: NDArray[np.int32] | None
    segment_ids_BL: NDArray[np.int32] | None
    """Document of each token, always of whole samples: also where the other arrays are of parts of them."""


def step_batches(
    dataset: Dataset, plan: BatchPlan, options: DocumentOptions, step: int, vocab_size: int
) -> list[Batch]:
    """Return the micro-batches of a step of one replica.

    Raises:
        FormatError: The data hold an id that the model has no row for.
    """
    return weighted(*own_batches(dataset, plan, options, step, vocab_size))


def own_batches(
    dataset: Dataset, plan: BatchPlan, options: DocumentOptions, step: int, vocab_size: int, replica: int = 0
) -> tuple[list[Batch], int]:
    """Return the micro-batches that `replica` takes of a step, with weights of 0 or 1, and how many are 1.

    Each forward pass takes the next samples, first those of replica 0. No other samples are read.

    Raises:
        FormatError: The data hold an id that the model has no row for.
    """
    epoch, _ = plan.epoch_and_step(step)
    numbers, size = plan.samples(step), plan.micro_batch
    batches, counted = [], 0
    for first in range(replica * size, len(numbers), plan.num_replicas * size):
        part = numbers[first : first + size]
        samples = [read_sample(dataset, number, options, epoch - 1) for number in part]
        counted += int(sum(sample.loss_mask_L.sum() for sample in samples))
        batches.append(_stack(samples, options, vocab_size))
    return batches, counted


def counted_tokens(batches: list[Batch]) -> int:
    """Return how many tokens carry loss, by weights of 0 or 1."""
    return sum(int(batch.weights_BL.sum(dtype=np.float64)) for batch in batches)


def weighted(batches: list[Batch], counted: int) -> list[Batch]:
    """Divide the weights by the number of tokens that carry loss in the whole step."""
    share = np.float32(max(counted, 1))
    return [replace(batch, weights_BL=batch.weights_BL / share) for batch in batches]


def all_tokens_count(dataset: Dataset, options: DocumentOptions) -> bool:
    """Return whether every token carries loss, so that a step's count is known without reading it."""
    is_text = isinstance(dataset, GptDataset | BlendedDataset)
    return is_text and options.pad < 0 and not options.eod_mask_loss


def evaluation_batches(
    dataset: Dataset,
    num_samples: int,
    batch: int,
    options: DocumentOptions,
    vocab_size: int,
    *,
    replica: int = 0,
    num_replicas: int = 1,
) -> Iterator[tuple[Batch, int]]:
    """Yield a replica's batches of one row count with weights of 0 or 1, and their unmasked tokens.

    The last batch is filled up with samples of weight 0, so that no second graph is compiled.
    """
    for first in range(replica * batch, num_samples, num_replicas * batch):
        numbers = range(first, min(first + batch, num_samples))
        samples = [read_sample(dataset, number, options) for number in numbers]
        counted = int(sum(sample.loss_mask_L.sum() for sample in samples))
        while len(samples) < batch:
            blank = samples[0]
            samples.append(
                Sample(
                    blank.input_ids_L, blank.labels_L, np.zeros_like(blank.loss_mask_L),
                    blank.position_ids_L, blank.document_ids_L,
                )
            )  # fmt: skip
        yield _stack(samples, options, vocab_size), counted


def read_sample(dataset: Dataset, number: int, options: DocumentOptions, epoch: int = 0) -> Sample:
    """Return a row of `dataset` in an epoch, counted from 0.

    Instruction data bring their labels, masks and borders along.
    """
    if isinstance(dataset, SftDataset | SftBlend):
        return dataset.sample(number, epoch)
    return make_sample(dataset.text(number), options)


def foreign_id(ids: NDArray[np.integer], vocab_size: int) -> int | None:
    """Return an id that a model of `vocab_size` rows has no row for, or None."""
    if not ids.size:
        return None
    if (largest := int(ids.max())) >= vocab_size:
        return largest
    return smallest if (smallest := int(ids.min())) < 0 else None


def _stack(samples: list[Sample], options: DocumentOptions, vocab_size: int) -> Batch:
    ids_BL = np.stack([sample.input_ids_L for sample in samples])
    labels_BL = np.stack([sample.labels_L for sample in samples])
    for each_BL in (ids_BL, labels_BL):
        if (foreign := foreign_id(each_BL, vocab_size)) is None:
            continue
        raise FormatError(
            f"the data hold id {foreign}, but the model has vocab_size={vocab_size}; use data of the "
            "model's tokenizer"
        )
    return Batch(
        ids_BL,
        labels_BL,
        np.stack([sample.loss_mask_L for sample in samples]),
        np.stack([s.position_ids_L for s in samples]) if options.reset_position_ids else None,
        np.stack([s.document_ids_L for s in samples]) if options.separate_documents else None,
    )
