"""Random weights to start from: the same numbers for a weight whatever the layout that asks for it.

Each block of rows has a generator of its own, seeded by the run's seed, the weight's name and the block, so
that blocks may be made in any order, by anyone.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from qwen3_model.config import Qwen3Config

BLOCK_ROWS = 1024


def init_weights(config: Qwen3Config, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every weight's name and float32 values in the model's order, one at a time."""
    for name in config.weight_shapes():
        yield name, fresh_weight(config, name, seed)


def fresh_weight(config: Qwen3Config, name: str, seed: int) -> np.ndarray:
    """Return one whole weight, float32: normal(0, initializer_range), or ones for a norm."""
    return np.concatenate(list(fresh_blocks(config, name, seed)))


def fresh_blocks(config: Qwen3Config, name: str, seed: int) -> Iterator[np.ndarray]:
    """Yield the same weight in blocks of at most `BLOCK_ROWS` rows."""
    shape = config.weight_shapes()[name]
    if len(shape) == 1:
        yield np.ones(shape, np.float32)
        return
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    for block, start in enumerate(range(0, shape[0], BLOCK_ROWS)):
        rows = min(BLOCK_ROWS, shape[0] - start)
        rng = np.random.default_rng([seed, key, block])
        values = rng.standard_normal((rows, shape[1]), dtype=np.float32)
        values *= np.float32(config.initializer_range)
        yield values
