"""Which region of the cache a request gets, and what of its prompt the cache has already.

A prompt that begins like another need not be read from its beginning: either the request goes on in the
region of the other, or the common prefix is copied. A prefix that another request is still reading is copied
once it is read; until then the request waits.
"""

from collections.abc import Sequence

from qwen3_infer.schedule.engine import Engine
from qwen3_infer.schedule.jobs import Job, tokens_needed
from qwen3_infer.steps.token_pool import Region, TokenPool

COMPARED = 256
"""Ids of two sequences that are compared at once."""


class RegionAllocator:
    """Allocate a region for each request of one engine, with the prefix that an earlier one has read."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.pool = TokenPool(engine.num_tokens, engine.unit)
        self._refused: tuple[Job, int] | None = None

    def allocate(self, job: Job, reading: Sequence[Job]) -> bool:
        """Give a job its region; return False where there is no room until another region is released.

        Args:
            job: Gets `region`, and `source` where a prefix is to be copied that is not read yet.
            reading: Jobs whose prompts are being read.
        """
        if self._refused == (job, self.pool.num_releases):
            return False
        source, num_shared = self._find_source(job, reading)
        if source is not None and self._continue_region(job, source, num_shared):
            return True
        job.region = self.pool.allocate(tokens_needed(job.request), keep=source)
        if job.region is None:
            self._refused = job, self.pool.num_releases
            return False
        if source is not None and source.is_valid:
            job.source, job.num_shared = source, num_shared
            self.copy_if_read(job, reading)
        return True

    def copy_if_read(self, job: Job, reading: Sequence[Job]) -> None:
        """Copy the prefix that a job shares with `job.source` once it is read, and clear `job.source`.

        Args:
            job: Keeps its source, and so must wait, while another job reads the prefix.
            reading: Jobs whose prompts are being read.
        """
        source = job.source
        if source is None:
            return
        is_read = len(source.ids) >= job.num_shared
        if not is_read and any(other.region is source for other in reading):
            return
        assert job.region is not None
        # Its request may have been cancelled, and another request have got the room since.
        num_equal = count_equal(source.ids, job.request.prompt_ids) if source.is_valid else 0
        num_copied = min(job.num_shared, self._round_to_pieces(num_equal))
        if num_copied > 0:
            self._engine.copy(source.start, job.region.start, num_copied)
            job.region.ids[:] = job.request.prompt_ids[:num_copied]
            self.pool.renew(source)
        job.num_read = job.num_shared = num_copied
        job.source = None

    def release(self, job: Job) -> None:
        """Take a job's region back, should it have one."""
        if job.region is not None:
            self.pool.release(job.region)
            job.region = None

    def _continue_region(self, job: Job, source: Region, num_shared: int) -> bool:
        """Let a job go on in the region that has its prefix; return False where that must stay as it is.

        So the next turn of a conversation stays in its region. A region is left to others where less than
        half of it is shared, as with a common system prompt.
        """
        is_continued = self.pool.is_released(source) and 2 * num_shared >= len(source.ids)
        if not (is_continued and self.pool.reuse(source, tokens_needed(job.request))):
            return False
        del source.ids[num_shared:]
        job.region, job.num_read, job.num_shared = source, num_shared, num_shared
        return True

    def _find_source(self, job: Job, reading: Sequence[Job]) -> tuple[Region | None, int]:
        """Return the region that begins most like the prompt, or will once it is read, and how many ids."""
        # A prompt whose tokens are scored needs logits of them all, so it must be read whole.
        if not self._engine.shares_beginnings or job.request.decoding.prompt_logprobs is not None:
            return None, 0
        # The last token must be read in any case: its logits are wanted.
        ids = job.request.prompt_ids[:-1]
        to_be_read = {other.region: other.request.prompt_ids for other in reading}
        best: tuple[Region | None, int] = (None, 0)
        for region in self.pool.regions:
            num_shared = self._round_to_pieces(count_equal(to_be_read.get(region, region.ids), ids))
            if num_shared > best[1]:
                best = region, num_shared
        return best

    def _round_to_pieces(self, num_tokens: int) -> int:
        """Return `num_tokens` rounded down to the unit in which prefixes are copied."""
        return num_tokens - num_tokens % self._engine.pieces[-1]


def count_equal(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids two sequences have in common at their beginning."""
    length = min(len(first), len(second))
    for start in range(0, length, COMPARED):
        # Slices compare in C; only the one that differs is looked through here.
        ours, theirs = tuple(first[start : start + COMPARED]), tuple(second[start : start + COMPARED])
        if ours != theirs:
            pairs = enumerate(zip(ours, theirs, strict=False), start)
            return next((at for at, (a, b) in pairs if a != b), length)
    return length
