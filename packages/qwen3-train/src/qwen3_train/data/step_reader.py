"""A replica's samples, read one step ahead in a thread, while the step before is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from qwen3_model.errors import FormatError
from qwen3_model.file_map import advise_random
from qwen3_model.tokens import TokenFile, sibling
from qwen3_train.data.batch_plan import BatchPlan
from qwen3_train.data.batches import Batch, Dataset, all_tokens_count, own_batches, weighted
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
        replica: int,
        last_step: int,
        add_counts: Callable[[int], int],
    ) -> None:
        """Take the data.

        Args:
            dataset: What is trained on.
            plan: Which samples each step takes.
            options: What document borders do.
            vocab_size: Rows of the model.
            replica: Whose samples are read.
            last_step: After which nothing is read.
            add_counts: Gives the sum over all replicas of a replica's tokens with loss; all ranks call it.
        """
        self.dataset, self.plan, self.options, self.vocab_size = dataset, plan, options, vocab_size
        self.replica, self.last_step, self.add_counts = replica, last_step, add_counts
        self._counts_all = all_tokens_count(dataset, options)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="samples")
        for tokens in self._all_files():
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
            counted = sum(batch.weights_BL.size for batch in own) * self.plan.num_replicas
        elif self.plan.num_replicas > 1:
            counted = self.add_counts(counted)
        return weighted(own, counted)

    def close(self) -> None:
        """Wait for the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _read(self, step: int) -> tuple[list[Batch], int]:
        for tokens in {id(file): file for file in self._token_files(step)}.values():
            require_whole(tokens)
        return own_batches(self.dataset, self.plan, self.options, step, self.vocab_size, self.replica)

    def _all_files(self) -> list[TokenFile]:
        if isinstance(self.dataset, GptDataset):
            return [self.dataset.tokens]
        if isinstance(self.dataset, BlendedDataset):
            return [part.tokens for part in self.dataset.datasets]
        return []

    def _token_files(self, step: int) -> list[TokenFile]:
        """Return the files that a step reads; conversations are in memory."""
        if not isinstance(self.dataset, BlendedDataset):
            return self._all_files()
        files = {int(self.dataset.files_N[number]) for number in self.plan.samples(step)}
        return [self.dataset.datasets[file].tokens for file in files]


def require_whole(tokens: TokenFile) -> None:
    """Raise FormatError when a mapped file has been cut, whose missing pages would end the process.

    A file that was removed or replaced is still mapped as it was.
    """
    path = sibling(tokens.prefix, ".bin")
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        return
    if size_bytes < tokens.num_tokens * tokens.dtype.itemsize:
        raise FormatError(
            f"{path} was cut to {size_bytes} bytes while the run was reading it, from "
            f"{tokens.num_tokens * tokens.dtype.itemsize}; end what writes to it, make it again and start "
            "the run again"
        )
