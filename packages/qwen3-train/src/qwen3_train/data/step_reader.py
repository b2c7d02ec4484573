"""A replica's samples, read one step ahead in a thread, while the step before is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from qwen3_model.command.file_map import advise_random
from qwen3_model.text.tokens import TokenFile
from qwen3_train.data.batch_plan import BatchPlan
from qwen3_train.data.batches import (
    Batch,
    Dataset,
    all_tokens_count,
    counted_tokens,
    own_batches,
    weighted,
)
from qwen3_train.data.context_part import ContextPart
from qwen3_train.data.gpt_dataset import BlendedDataset, DocumentOptions, GptDataset


class StepReader:
    """Give the micro-batches of each step in turn."""

    def __init__(
        self,
        dataset: Dataset,
        plan: BatchPlan,
        options: DocumentOptions,
        vocab_size: int,
        *,
        part: ContextPart,
        last_step: int,
        add_counts: Callable[[int], int],
    ) -> None:
        """Take the data.

        Args:
            dataset: What is trained on.
            plan: Which samples each step takes.
            options: What document borders do.
            vocab_size: Rows of the model.
            part: Which samples are read, and which part of each.
            last_step: After which nothing is read.
            add_counts: Gives the sum over all replicas of the tokens with loss that each has of its part;
                all ranks call it.
        """
        self.dataset, self.plan, self.options, self.vocab_size = dataset, plan, options, vocab_size
        self.part, self.last_step, self.add_counts = part, last_step, add_counts
        self._counts_all = all_tokens_count(dataset, options)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="samples")
        for tokens in _token_files(dataset):
            # Samples lie all over a file; read-ahead would fetch a hundred times what they need.
            advise_random(tokens.ids)
        self._ahead: tuple[int, Future[tuple[list[Batch], int]]] | None = None

    def batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step, and begin to read the next.

        Raises:
            FormatError: The data hold an id that the model has no row for, or a file was cut meanwhile.
        """
        ahead, self._ahead = self._ahead, None
        own, counted = ahead[1].result() if ahead is not None and ahead[0] == step else self._read(step)
        if step < self.last_step:
            self._ahead = (step + 1, self._pool.submit(self._read, step + 1))
        if self._counts_all:
            # Without a mask the count is known, and no sum over the ranks is needed.
            counted = sum(batch.weights_BL.size for batch in own)
            counted *= self.plan.num_replicas * self.part.size
        elif self.plan.num_replicas * self.part.size > 1:
            counted = self.add_counts(counted)
        return weighted(own, counted)

    def close(self) -> None:
        """Wait for the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _read(self, step: int) -> tuple[list[Batch], int]:
        batches, counted = own_batches(
            self.dataset, self.plan, self.options, step, self.vocab_size, self.part.replica
        )
        for tokens in _token_files(self.dataset, self.plan.samples(step)):
            tokens.require_whole()
        if self.part.size == 1:
            return batches, counted
        parts = [self.part.part_of(batch) for batch in batches]
        return parts, counted_tokens(parts)


def require_whole_files(dataset: Dataset) -> None:
    """Raise FormatError when a token file of `dataset` has been cut since it was opened."""
    for tokens in _token_files(dataset):
        tokens.require_whole()


def _token_files(dataset: Dataset, samples: range | None = None) -> list[TokenFile]:
    """Return the token files that have these samples, or all of them; conversations have none."""
    if isinstance(dataset, GptDataset):
        return [dataset.tokens]
    if not isinstance(dataset, BlendedDataset):
        return []
    if samples is None:
        return [part.tokens for part in dataset.datasets]
    files = {int(dataset.files_N[number]) for number in samples}
    return [dataset.datasets[file].tokens for file in files]
