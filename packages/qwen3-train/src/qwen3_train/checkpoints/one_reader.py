"""Weights that all replicas hold: one replica reads each of them and sends it to the others.

What a job reads then grows with its model and not with its replicas, which read a part each. Values arrive
bit for bit: they are sent in halves of 16 bits, as whole numbers in float32, since the sum that every device
has in a group may lose the sign of a zero or a number close to zero.

N elements of a parameter.
"""

from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Parameter
from numpy.typing import NDArray

from qwen3_model.checkpoints.weight_values import Values, make_room, read_float32
from qwen3_model.network.loading import fill

CHUNK = 1 << 23
"""Halves that are sent at once; 32 MiB."""
Sum = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Adds up an array over the replicas, which all call it."""


class OneReader:
    """Fills parameters that are equal on all replicas; every replica calls each method, in the same order."""

    def __init__(self, add: Sum, index: int, size: int) -> None:
        """Take a sum over `size` replicas, of which this is number `index`."""
        self._add, self._index, self._load = add, index, [0] * size

    def holders(self, has: Sequence[bool]) -> NDArray[np.bool_]:
        """Exchange which weights each replica has; return that, (replicas, len(has))."""
        mine = np.zeros((len(self._load), len(has)), np.float32)
        mine[self._index] = has
        return self._add(mine.reshape(-1)).reshape(mine.shape) > 0

    def put(
        self,
        parameter: Parameter,
        dtype: str,
        values: Values | None,
        holders: NDArray[np.bool_] | None = None,
    ) -> None:
        """Fill a parameter; see `fill`.

        Args:
            parameter: What is filled, float32.
            dtype: Type of `values` in their file.
            values: Its values, which one replica alone reads: the holder with the least to read so far. None
                on a replica that is no holder.
            holders: Which replicas have them, (replicas,); None for all.

        Raises:
            FormatError: They lie in a file that has become shorter, or cannot be read.
        """
        able = range(len(self._load)) if holders is None else np.flatnonzero(holders).tolist()
        reader = min(able, key=self._load.__getitem__)
        self._load[reader] += parameter.size
        found = make_room(tuple(parameter.shape), np.float32)
        if reader == self._index:
            assert values is not None
            read_float32(dtype, values, found)
        self._send(found.reshape(-1), is_mine=reader == self._index)
        fill(parameter, "F32", found)

    def _send(self, values_N: NDArray[np.float32], *, is_mine: bool) -> None:
        """Send the values where `is_mine`, else receive them into `values_N`."""
        halves = values_N.view(np.uint16)
        for start in range(0, len(halves), CHUNK):
            part = halves[start : start + CHUNK]
            # Sizes are powers of two, for each of which one graph is compiled.
            sent = np.zeros(1 << (len(part) - 1).bit_length(), np.float32)
            if is_mine:
                sent[: len(part)] = part
            total = self._add(sent)
            if not is_mine:
                part[:] = total[: len(part)]
