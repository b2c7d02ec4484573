"""What scoring a sequence gives.

T targets.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What the model thinks of the last T tokens of a sequence."""

    log_probs_T: NDArray[np.float64]
    """Natural logarithm of each token's probability after those before it."""
    is_likeliest_T: NDArray[np.bool_]
    """Whether it is the token that greedy decoding would take."""
