"""What the processes of `qwen3-train doctor` measure on a device, as the JSON between them has it."""

from typing import TypedDict


class MeasuredSum(TypedDict):
    """An AllReduce over all ranks."""

    is_right: bool
    seconds: float
    """Seconds of the fastest try."""
    gb_per_s: float


class MeasuredStep(TypedDict):
    """A training step."""

    loss: float
    """Nats per token."""
    grad_norm: float
    seconds: float


class Measured(TypedDict):
    """All that is measured."""

    mindspore: str
    """Version of MindSpore."""
    product_error: float
    """Largest difference of a product of matrices from float64, relative."""
    sum: MeasuredSum | None
    """None with one process."""
    steps: list[MeasuredStep]
    memory_gb: float
