"""Which tokens of the cache belong to which request: regions of any length, side by side without gaps.

A region that its request has released keeps its contents until the room is needed, for the next request whose
prompt begins alike.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from qwen3_infer.steps.pieces import round_up


@dataclass(eq=False, slots=True)
class Region:
    """Room for one request."""

    start: int
    """Slot of the cache at which the region begins."""
    size: int
    """Number of its slots, each for one token."""
    ids: list[int] = field(default_factory=list)
    """The ids whose keys and values the region has, from its beginning."""
    is_valid: bool = True
    """Whether the contents are still there: False once another request has got the room."""

    @property
    def end(self) -> int:
        """The slot after the last."""
        return self.start + self.size


class TokenPool:
    """Allocate `num_tokens` slots in multiples of `unit`."""

    def __init__(self, num_tokens: int, unit: int) -> None:
        self.num_tokens, self.unit = num_tokens // unit * unit, unit
        self._used: list[Region] = []
        self._released: list[Region] = []  # the longest unused first
        self.num_releases = 0
        """How often a region was released: after each release there may be more room."""

    @property
    def num_used(self) -> int:
        """Slots that running requests have."""
        return sum(region.size for region in self._used)

    @property
    def regions(self) -> Iterator[Region]:
        """Every region whose contents can be copied."""
        yield from self._used
        yield from self._released

    def is_released(self, region: Region) -> bool:
        """Return whether no request uses a region."""
        return region in self._released

    def size_for(self, num_tokens: int) -> int:
        """Return how many slots a request for `num_tokens` gets."""
        return round_up(num_tokens, self.unit)

    def allocate(self, num_tokens: int, keep: Region | None = None) -> Region | None:
        """Return a new region, or None until others are released.

        Released regions are evicted, the longest unused first; `keep` only where nothing else makes room.
        """
        size = self.size_for(num_tokens)
        if self._find_gap(size, self._used) is None:
            return None  # evicting every released region would not help, so none is evicted
        while (start := self._find_gap(size, self.regions)) is None:
            victim = next((region for region in self._released if region is not keep), None)
            if victim is None:
                assert keep is not None
                victim, keep = keep, None
            self._evict(victim)
        region = Region(start, size)
        self._used.append(region)
        return region

    def reuse(self, region: Region, num_tokens: int) -> bool:
        """Allocate a released region again, at a new size; return False if a used region is in the way."""
        end = region.start + self.size_for(num_tokens)
        behind = [other for other in self.regions if region.start < other.start < end]
        if end > self.num_tokens or any(other in self._used for other in behind):
            return False
        for other in behind:
            self._evict(other)
        self._released.remove(region)
        region.size = end - region.start
        self._used.append(region)
        return True

    def release(self, region: Region) -> None:
        """Take a region back from its request; its contents stay, should it have any."""
        self._used.remove(region)
        self.num_releases += 1
        if region.ids:
            self._released.append(region)
        else:
            region.is_valid = False

    def renew(self, region: Region) -> None:
        """Let a released region be the last to be evicted, for its contents were of use."""
        if region in self._released:
            self._released.remove(region)
            self._released.append(region)

    def _evict(self, region: Region) -> None:
        self._released.remove(region)
        region.is_valid = False

    def _find_gap(self, size: int, regions: Iterable[Region]) -> int | None:
        """Return the start of the first gap of at least `size` slots between `regions`; None without one."""
        start = 0
        for region in sorted(regions, key=lambda each: each.start):
            if region.start - start >= size:
                return start
            start = region.end
        return start if self.num_tokens - start >= size else None
