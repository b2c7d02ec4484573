"""The constants of AdamW; free of MindSpore."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamSettings:
    """The constants of AdamW (Loshchilov and Hutter 2019, algorithm 2)."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
