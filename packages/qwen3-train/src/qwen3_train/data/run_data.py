"""What a run trains on, whether token files or conversations."""

from collections.abc import Callable
from dataclasses import dataclass

from qwen3_train.data.batches import Dataset
from qwen3_train.data.gpt_dataset import DocumentOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """Data that have been checked against the model."""

    train: Dataset
    valid: Dataset | None
    """What to evaluate on, or None for no evaluation."""
    num_valid: int
    options: DocumentOptions
    eos_id: int | None
    """Token that ends a document or an answer, where it is known."""
    stop_ids: tuple[int, ...]
    """Tokens at which the trained model's answers end; empty where the data are no conversations."""
    fingerprint: Callable[[int | None], str]
    """Hash of the data and their order, and, as it once was, of the number of samples of a step."""
