"""Which tokens of the cache belong to which request: regions without gaps, side by side, of any length.

A region that its request has left keeps what it holds until the room is needed, for the next request that
begins alike.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qwen3_infer.steps.pieces import round_up


@dataclass(eq=False, slots=True)
class Region:
    """Room for one request."""

    start: int
    """First token of the cache."""
    size: int
    """How many tokens it has."""
    held: list[int] = field(default_factory=list)
    """The ids whose keys and values are there, from the region's beginning."""
    is_alive: bool = True
    """Whether nobody else has got the room."""

    @property
    def end(self) -> int:
        """The token after the last."""
        return self.start + self.size


class TokenPool:
    """Room for `num_tokens`, given out in multiples of `unit`."""

    def __init__(self, num_tokens: int, unit: int) -> None:
        self.num_tokens, self.unit = num_tokens // unit * unit, unit
        self._used: list[Region] = []
        self._left: list[Region] = []  # the longest unused first
        self.num_left = 0
        """How often a request has given its region back: after each there may be more room."""

    @property
    def num_used(self) -> int:
        """Tokens of the cache that running requests have."""
        return sum(region.size for region in self._used)

    @property
    def regions(self) -> Iterator[Region]:
        """Every region whose contents can be copied."""
        yield from self._used
        yield from self._left

    def is_left(self, region: Region) -> bool:
        """Return whether no request uses a region."""
        return region in self._left

    def size_for(self, num_tokens: int) -> int:
        """Return how many tokens a request for `num_tokens` gets."""
        return round_up(num_tokens, self.unit)

    def take(self, num_tokens: int, keep: Region | None = None) -> Region | None:
        """Return a new region, or None until others are given back.

        What was left behind longest goes first; `keep` stays as long as there is other room.
        """
        size = self.size_for(num_tokens)
        if self._gap(size, self._used) is None:
            return None  # not even without all that was left behind, which therefore stays
        while (start := self._gap(size, self.regions)) is None:
            victim = next((region for region in self._left if region is not keep), None)
            if victim is None:
                assert keep is not None
                victim, keep = keep, None
            self._forget(victim)
        region = Region(start, size)
        self._used.append(region)
        return region

    def grow(self, region: Region, num_tokens: int) -> bool:
        """Take a region that was left, at a new size in its place; False if others stand behind it."""
        end = region.start + self.size_for(num_tokens)
        behind = [other for other in self.regions if region.start < other.start < end]
        if end > self.num_tokens or any(other in self._used for other in behind):
            return False
        for other in behind:
            self._forget(other)
        self._left.remove(region)
        region.size = end - region.start
        self._used.append(region)
        return True

    def leave(self, region: Region) -> None:
        """Give a region back with what it holds."""
        self._used.remove(region)
        self.num_left += 1
        if region.held:
            self._left.append(region)
        else:
            region.is_alive = False

    def touch(self, region: Region) -> None:
        """Say that a region that was left has been of use."""
        if region in self._left:
            self._left.remove(region)
            self._left.append(region)

    def _forget(self, region: Region) -> None:
        self._left.remove(region)
        region.is_alive = False

    def _gap(self, size: int, regions: Iterable[Region]) -> int | None:
        """Return the start of the first gap of at least `size` between `regions`."""
        at = 0
        for region in sorted(regions, key=lambda each: each.start):
            if region.start - at >= size:
                return at
            at = region.end
        return at if self.num_tokens - at >= size else None
