"""The constants of AdamW and what they become for MindSpore's kernel; free of MindSpore."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamSettings:
    """The constants of AdamW (Loshchilov and Hutter 2019, algorithm 2)."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def scalars(self, lr: float, step: int) -> tuple[float, float, float]:
        """Return the kernel's rate, epsilon and decay for the `step`-th update, counted from 1.

        The kernel knows no bias correction: it subtracts lr' * (m / (sqrt(v) + eps') + decay' * p). With
        c1 = 1 - beta1^t, c2 = 1 - beta2^t and
            lr' = lr sqrt(c2) / c1,  eps' = eps sqrt(c2),  decay' = decay c1 / sqrt(c2)
        that is lr * ((m / c1) / (sqrt(v / c2) + eps) + decay * p).
        """
        c1, root2 = 1.0 - self.beta1**step, math.sqrt(1.0 - self.beta2**step)
        return lr * root2 / c1, self.eps * root2, self.weight_decay * c1 / root2
