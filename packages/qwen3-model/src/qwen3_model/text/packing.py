"""Samples into packs of a bounded length, first fit, a bounded number of packs open."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_OPEN = 64
"""Packs that still take samples; the fullest is written when another one must open."""
SMALLEST_ROOM = 16
"""A pack with less room is written at once: no conversation is shorter."""


@dataclass(frozen=True, slots=True)
class ChatSample:
    """One conversation."""

    ids_L: NDArray[np.integer]
    """Unsigned or int32."""
    mask_L: NDArray[np.integer]
    """uint8, 1 where the token is to be predicted."""


class Packer:
    """Puts each sample into the first open pack with room for it."""

    def __init__(self, seq_length: int, *, is_open: bool) -> None:
        self.seq_length = seq_length
        self.max_open = MAX_OPEN if is_open else 0

    def pack(self, samples: Iterable[ChatSample]) -> Iterator[list[ChatSample]]:
        """Yield packs of samples; the order within a pack is that of the input."""
        packs: list[list[ChatSample]] = []
        rooms: list[int] = []
        for sample in samples:
            length = len(sample.ids_L)
            index = next((number for number, room in enumerate(rooms) if room >= length), None)
            if index is None:
                if len(packs) >= self.max_open:
                    if packs:
                        fullest = rooms.index(min(rooms))
                        rooms.pop(fullest)
                        yield packs.pop(fullest)
                    else:
                        yield [sample]
                        continue
                packs.append([sample])
                rooms.append(self.seq_length - length)
            else:
                packs[index].append(sample)
                rooms[index] -= length
                if rooms[index] < SMALLEST_ROOM:
                    rooms.pop(index)
                    yield packs.pop(index)
        yield from packs
