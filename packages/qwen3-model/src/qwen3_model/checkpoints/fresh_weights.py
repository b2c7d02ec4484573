"""Random weights to start from: the same numbers for a weight whatever the layout that asks for it.

Each block of rows has a generator of its own, seeded by the run's seed, the weight's name and the block, so
that blocks may be made in any order, by anyone.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from qwen3_model.config import Qwen3Config

BLOCK_ROWS = 1024
NUM_THREADS = 2


def init_weights(config: Qwen3Config, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every weight's name and float32 values in the model's order, one at a time."""
    for name in config.weight_shapes():
        yield name, fresh_weight(config, name, seed)


def fresh_weight(
    config: Qwen3Config, name: str, seed: int, part: tuple[slice, ...] | None = None
) -> np.ndarray:
    """Return one whole weight, float32: normal(0, initializer_range), or ones for a norm; or a part of it.

    Blocks without a row of the part are not made; of the others one at a time in each of two threads.
    """
    shape = config.weight_shapes()[name]
    part = part or tuple(slice(0, size) for size in shape)
    values = np.empty([each.stop - each.start for each in part], np.float32)
    if len(shape) == 1:
        values.fill(1.0)
        return values
    rows, columns = part

    def put(block: int) -> None:
        first = block * BLOCK_ROWS
        own = slice(max(rows.start, first), min(rows.stop, first + BLOCK_ROWS))
        made = _block(config, name, seed, block)[own.start - first : own.stop - first, columns]
        values[own.start - rows.start : own.stop - rows.start] = made

    blocks = range(rows.start // BLOCK_ROWS, -(-rows.stop // BLOCK_ROWS))
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(put, blocks))
    return values


def fresh_blocks(config: Qwen3Config, name: str, seed: int) -> Iterator[np.ndarray]:
    """Yield the same weight in blocks of at most `BLOCK_ROWS` rows."""
    shape = config.weight_shapes()[name]
    if len(shape) == 1:
        yield np.ones(shape, np.float32)
        return
    for block in range(-(-shape[0] // BLOCK_ROWS)):
        yield _block(config, name, seed, block)


def _block(config: Qwen3Config, name: str, seed: int, block: int) -> np.ndarray:
    shape = config.weight_shapes()[name]
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rows = min(BLOCK_ROWS, shape[0] - block * BLOCK_ROWS)
    rng = np.random.default_rng([seed, key, block])
    values = rng.standard_normal((rows, shape[1]), dtype=np.float32)
    values *= np.float32(config.initializer_range)
    return values
