"""In which order the samples of several files come: always from the file that is most behind its share.

One sample decides the next, but not for long: from whatever counts one begins, after some samples they are
those that they would be anyway. So blocks of samples are served side by side in numpy, each from counts
that a few samples before it have put right, and a block counts only where it begins with the very counts with
which the one before ended. The result is that of one sample after the other, to the last bit, as is that of
compiled code, which takes them one after the other and serves larger data.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3_train.data.compiled_order import Order, compiled_serve

BLOCK = 512
"""Samples of a block."""
CHUNK_ELEMENTS = 1 << 18
"""Counts, blocks times files, that are kept at once."""
COMPILED_SAMPLES = 5_000_000
"""Samples from which on compiled code serves them, which takes some seconds to compile once."""
PIECE = 1 << 20
"""Samples that it serves at once."""
MAX_ROUNDS = 4
"""Times that blocks are served anew before the rest comes one sample after the other."""


def weighted_order(weights: Sequence[float], num_samples: int) -> Order:
    """Return for each sample its file and its number there, always serving the file most behind."""
    return _join_pieces(weighted_pieces(weights, num_samples), num_samples)


def weighted_pieces(weights: Sequence[float], num_samples: int) -> Iterator[Order]:
    """Yield the order of `weighted_order` piece by piece."""
    shares = np.array(weights, dtype=np.float64)
    # Megatron, when it blends, divides weights that sum to 1 by their sum once more; the last bit decides
    # between files that are equally far behind.
    shares /= shares.sum()
    return _serve(shares, None, num_samples)


def exhaustive_order(sizes: Sequence[int]) -> Order:
    """Return the order that serves every sample once, the files mixed in proportion to their sizes."""
    return _join_pieces(exhaustive_pieces(sizes), int(sum(sizes)))


def exhaustive_pieces(sizes: Sequence[int]) -> Iterator[Order]:
    """Yield the order of `exhaustive_order` piece by piece."""
    left = np.array(sizes, dtype=np.int64)
    total = int(left.sum())
    return _serve(left / max(total, 1), left, total)


def _join_pieces(pieces: Iterator[Order], total: int) -> Order:
    files, numbers, done = np.zeros(total, dtype=np.int32), np.zeros(total, dtype=np.int64), 0
    for files_P, numbers_P in pieces:
        part = slice(done, done + len(files_P))
        files[part], numbers[part], done = files_P, numbers_P, part.stop
    return files, numbers


def _serve(shares: NDArray[np.float64], left: NDArray[np.int64] | None, total: int) -> Iterator[Order]:
    served = np.zeros(len(shares), dtype=np.int64)
    serve = compiled_serve() if total >= COMPILED_SAMPLES else None
    if serve is not None:
        for first in range(0, total, PIECE):
            yield serve(shares, left, served, first, min(PIECE, total - first))
        return
    blocks = max(1, CHUNK_ELEMENTS // len(shares))
    for first in range(0, total, blocks * BLOCK):
        count = min(blocks * BLOCK, total - first)
        files, numbers = _serve_chunk(shares, left, served, first, count)
        yield files, numbers
        served += np.bincount(files, minlength=len(shares))


def _serve_chunk(
    shares: NDArray[np.float64],
    left: NDArray[np.int64] | None,
    served: NDArray[np.int64],
    first: int,
    count: int,
) -> Order:
    """Serve `count` samples from number `first` on, of which `served` came before."""
    num_blocks = -(-count // BLOCK)
    begins = first + BLOCK * np.arange(num_blocks, dtype=np.int64)
    # Early enough that every file has been served since, and no block begins below zero.
    warm = min(BLOCK, 4 * len(shares) + 16)
    before = _round_counts(shares, left, begins - warm)
    for step in range(warm):
        _step(shares, left, before, begins - warm + step)
    before[0] = served
    files = np.zeros((BLOCK, num_blocks), dtype=np.int32)
    numbers = np.zeros((BLOCK, num_blocks), dtype=np.int64)
    ends = before.copy()
    wrong = np.arange(num_blocks)
    for _ in range(MAX_ROUNDS):
        counts = before[wrong]
        for step in range(BLOCK):
            files[step, wrong], numbers[step, wrong] = _step(shares, left, counts, begins[wrong] + step)
        ends[wrong] = counts
        wrong = 1 + np.flatnonzero((before[1:] != ends[:-1]).any(axis=1))
        if not len(wrong):
            break
        before[wrong] = ends[wrong - 1]
    files_N, numbers_N = files.T.reshape(-1)[:count], numbers.T.reshape(-1)[:count]
    if len(wrong):
        done = int(wrong[0]) * BLOCK
        counts = served + np.bincount(files_N[:done], minlength=len(shares))
        for sample in range(done, count):
            found = _step(shares, left, counts[None], np.array([first + sample]))
            files_N[sample], numbers_N[sample] = found[0][0], found[1][0]
    return files_N, numbers_N


def _step(
    shares: NDArray[np.float64],
    left: NDArray[np.int64] | None,
    counts: NDArray[np.int64],
    samples: NDArray[np.int64],
) -> Order:
    """Serve sample `samples[b]` of each row b of `counts`; return the files, and their numbers there."""
    lag = shares * np.maximum(samples, 1.0)[:, None] - counts
    if left is not None:
        lag[counts >= left] = -np.inf
    behind = lag.argmax(axis=1)
    rows = np.arange(len(counts))
    numbers = counts[rows, behind]
    counts[rows, behind] += 1
    return behind.astype(np.int32), numbers


def _round_counts(
    shares: NDArray[np.float64], left: NDArray[np.int64] | None, samples: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return counts near those after so many samples: shares rounded so that their sum is right."""
    exact = shares * np.maximum(samples, 0)[:, None]
    counts = np.floor(exact).astype(np.int64)
    missing = np.maximum(samples, 0) - counts.sum(axis=1)
    ranking = np.argsort(np.argsort(-(exact - counts), axis=1, kind="stable"), axis=1, kind="stable")
    counts += ranking < missing[:, None]
    return counts if left is None else np.minimum(counts, left)
