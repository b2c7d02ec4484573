"""Which request's tokens the model computes next: requests join and leave a running batch at any token.

Each call of the engine reads one piece of one prompt or adds one token to every running request. What a
request gets depends on itself alone: its own prefill, its own random numbers, its own stop rules.

B requests in a batch, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from qwen3_infer.sampling.grammar import GrammarError, Grammars
from qwen3_infer.sampling.logits import Likeliest, Logits
from qwen3_infer.sampling.sampling import (
    Sums,
    choose,
    likeliest_log_probabilities,
    log_probability,
    make_generator,
)
from qwen3_infer.schedule.jobs import Event, Job, restriction, tokens_needed
from qwen3_infer.schedule.requests import Request
from qwen3_infer.steps.pieces import PIECES, cut
from qwen3_infer.steps.token_pool import Region, TokenPool
from qwen3_infer.text.text_stream import TextStream
from qwen3_model.errors import ConfigError, Qwen3Error, WeightError
from qwen3_model.text.tokenizer import Qwen3Tokenizer

# A running request waits at most for this many tokens of prompts before its next token.
MOST_READ_BETWEEN = 4 * PIECES[0]


class Engine(Protocol):
    """A model with a cache of tokens, in which each request has a region."""

    num_rows: int
    """Most requests that run at once."""
    num_tokens: int
    """Room of the cache."""
    unit: int
    """Regions begin at multiples of this and are multiples of it."""
    pieces: tuple[int, ...]
    """Lengths that prompts are read in, the longest first."""
    shares_beginnings: bool
    """Whether what was read for one prompt may be used for another that begins alike."""

    def read(self, start: int, ids: Sequence[int], position: int, length: int) -> Logits:
        """Add `ids` to the region at `start`, from `position` on, filled up to `length`.

        Returns:
            The logits after the last of `ids`.
        """
        ...

    def read_all(self, start: int, ids: Sequence[int], position: int, length: int) -> np.ndarray:
        """Do the same, and return the logits after each of `ids`, float32 (len(ids), V)."""
        ...

    def decode(self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray) -> Sequence[Logits]:
        """Add one token to each of B regions, at its position; return the logits after each."""
        ...

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens`, a multiple of the shortest piece, of one region to another."""
        ...


class Scheduler:
    """Waiting, reading and running requests of one engine."""

    def __init__(self, engine: Engine, tokenizer: Qwen3Tokenizer) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        # Only native kernels bring it.
        self._sums: Sums | None = getattr(engine, "weight_sums", None)
        self.grammars = Grammars(tokenizer)
        """Compiles what answers must follow; on any thread."""
        self.pool = TokenPool(engine.num_tokens, engine.unit)
        self._has_no_room: tuple[Job, int] | None = None
        self.waiting: deque[Job] = deque()
        self.reading: list[Job] = []
        self.running: list[Job] = []
        self._num_pieces = self._num_tokens_read = 0
        self._owes_oldest = False

    @property
    def num_rows(self) -> int:
        """Most requests that run at once."""
        return self._engine.num_rows

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.reading or self.running)

    def check(self, request: Request) -> None:
        """Raise when a request can never run.

        Raises:
            ConfigError: The whole cache has no room for it; the numbers are in the message.
        """
        need = self.pool.size_for(tokens_needed(request))
        if need > self.pool.num_tokens:
            raise ConfigError(
                f"a prompt of {len(request.prompt_ids)} tokens with {request.max_new_tokens} new ones takes "
                f"{need} tokens of a cache that has {self.pool.num_tokens}; shorten one of them"
            )

    def submit(self, request: Request) -> Job:
        """Put a request at the end of the queue.

        Raises:
            ConfigError: The whole cache has no room for it.
            FormatError: Its grammar cannot be followed.
        """
        self.check(request)
        grammar = request.decoding.grammar
        follower = self.grammars.follow(grammar) if grammar else None
        stream = TextStream(self._tokenizer, request.decoding.stop_strings)
        job = Job(request, make_generator(request.seed, request.index, request.sample), stream)
        job.follower = follower
        self.waiting.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Forget a request; one that is done already is none."""
        for jobs in (self.waiting, self.reading, self.running):
            if job in jobs:
                jobs.remove(job)
        self._leave(job)

    def cancel_all(self) -> None:
        """Forget every request, and what the cache holds."""
        self.waiting.clear()
        self.reading.clear()
        self.running.clear()
        self.pool = TokenPool(self._engine.num_tokens, self._engine.unit)

    def advance(self) -> list[Event]:
        """Call the engine once, for one piece of a prompt or a token of each running request."""
        self._admit()
        reader = self._next_reader()
        if reader and (not self.running or self._may_read()):
            return self._read(reader)
        return self._decode() if self.running else []

    def _admit(self) -> None:
        """Give the first in the queue a region, as long as there is room."""
        while self.waiting and len(self.reading) + len(self.running) < self._engine.num_rows:
            job = self.waiting[0]
            if self._has_no_room == (job, self.pool.num_left):
                return  # nothing has been given back since
            source, shared = self._best_source(job)
            need = tokens_needed(job.request)
            if not (source and self._goes_on(job, source, shared)):
                job.region = self.pool.take(need, keep=source)
                if job.region is None:
                    self._has_no_room = job, self.pool.num_left
                    return
                if source and source.is_alive:
                    job.source, job.num_shared = source, shared
                    self._copy_if_read(job)
            self.waiting.popleft()
            self.reading.append(job)

    def _goes_on(self, job: Job, source: Region, shared: int) -> bool:
        """Let a job have the very region that it continues, if nobody uses it and there is room behind it."""
        # A conversation that goes on stays where it is; a common beginning is left for others.
        is_own = self.pool.is_left(source) and 2 * shared >= len(source.held)
        if not (is_own and self.pool.grow(source, tokens_needed(job.request))):
            return False
        del source.held[shared:]
        job.region, job.num_read, job.num_shared = source, shared, shared
        return True

    def _best_source(self, job: Job) -> tuple[Region | None, int]:
        """Return the region that begins most like the prompt, or soon will, and how much of it."""
        if not self._engine.shares_beginnings or job.request.decoding.prompt_logprobs is not None:
            return None, 0  # what is not read has no logits
        ids = job.request.prompt_ids
        best: tuple[Region | None, int] = (None, 0)
        promised = {other.region: other.request.prompt_ids for other in self.reading}
        for region in self.pool.regions:
            # The last token has to be read in any case: its logits are wanted.
            shared = num_equal(promised.get(region, region.held), ids[:-1])
            shared -= shared % self._engine.pieces[-1]
            if shared > best[1]:
                best = region, shared
        return best

    def _copy_if_read(self, job: Job) -> bool:
        """Copy the beginning that a job waits for, if it is there; return whether the job waits no longer."""
        source = job.source
        if source is None:
            return True
        is_promised = any(other.region is source for other in self.reading)
        if is_promised and len(source.held) < job.num_shared:
            return False
        assert job.region is not None
        # Its request may have been cancelled, and its room have got another since.
        held = num_equal(source.held, job.request.prompt_ids) if source.is_alive else 0
        count = min(job.num_shared, held - held % self._engine.pieces[-1])
        if count:
            self._engine.copy(source.start, job.region.start, count)
            job.region.held[:] = job.request.prompt_ids[:count]
            self.pool.touch(source)
        job.num_read = job.num_shared = count
        job.source = None
        return True

    def _next_reader(self) -> Job | None:
        """Return whose prompt is read next: that which is done soonest, but never twice before the oldest."""
        ready = [job for job in self.reading if self._copy_if_read(job)]
        if not ready:
            return None
        if self._owes_oldest:
            return ready[0]
        return min(ready, key=lambda job: len(job.request.prompt_ids) - job.num_read)

    def _may_read(self) -> bool:
        """Return whether a piece may come before the running requests' next tokens.

        The more wait for their first token and the fewer run, the more pieces come in between.
        """
        most = -(-len(self.reading) // (len(self.running) + 1))
        return self._num_pieces < most and self._num_tokens_read < MOST_READ_BETWEEN

    def _read(self, job: Job) -> list[Event]:
        ids, region = job.request.prompt_ids, job.region
        assert region is not None
        is_scored = job.request.decoding.prompt_logprobs is not None
        # The logits of all places of a long piece would take much memory.
        pieces = self._engine.pieces[-1:] if is_scored else self._engine.pieces
        start, length = next(cut(len(ids), job.num_read, pieces))
        piece = ids[start : start + length]
        logits: Logits
        if is_scored:
            logits_LV = self._engine.read_all(region.start, piece, start, length)
            score_prompt(job, logits_LV, start)
            logits = logits_LV[-1]
        else:
            logits = self._engine.read(region.start, piece, start, length)
        region.held.extend(piece)
        job.num_read += len(piece)
        self._num_pieces += 1
        self._num_tokens_read += length
        self._owes_oldest = job is not self.reading[0]
        if job.num_read < len(ids):
            return []
        self.reading.remove(job)
        self.running.append(job)
        return [self._accept(job, logits)]

    def _decode(self) -> list[Event]:
        self._num_pieces = self._num_tokens_read = 0
        jobs = list(self.running)
        starts, tokens, positions = zip(*map(_decode_input, jobs), strict=True)
        rows = self._engine.decode(*(np.array(each, np.int32) for each in (starts, tokens, positions)))
        for job in jobs:
            assert job.region is not None
            job.region.held.append(job.ids[-1])
        return [self._accept(job, logits) for job, logits in zip(jobs, rows, strict=True)]

    def _accept(self, job: Job, logits: Logits) -> Event:
        """Choose the job's next token; a job that is done gives its region back."""
        decoding = job.request.decoding
        if isinstance(logits, Likeliest):
            wants_all = decoding.logprobs or decoding.top_logprobs or restriction(job)
            token = None if wants_all else logits.choose(decoding.sampling, job.rng)
            if token is not None:
                return self._add(job, token)
            logits = logits.whole()
        return self._accept_whole(job, logits)

    def _accept_whole(self, job: Job, logits_V: np.ndarray) -> Event:
        request, decoding = job.request, job.request.decoding
        if not np.isfinite(logits_V.max()):
            if job.region:
                job.region.held.clear()
            error = WeightError(
                "the model computes NaN or infinity; check its weights with qwen3-model verify"
            )
            return self._fail(job, error)
        try:
            token = choose(
                logits_V, decoding.sampling, job.rng, request.prompt_ids, job.ids, restriction(job),
                sums=self._sums,
            )  # fmt: skip
        except GrammarError as error:
            return self._fail(job, error)
        logprob = log_probability(logits_V, token) if decoding.logprobs else None
        if logprob is not None:
            job.logprobs.append(logprob)
        return self._add(job, token, logprob, likeliest_log_probabilities(logits_V, decoding.top_logprobs))

    def _add(
        self,
        job: Job,
        token: int,
        logprob: float | None = None,
        top_logprobs: tuple[tuple[int, float], ...] = (),
    ) -> Event:
        decoding = job.request.decoding
        job.ids.append(token)
        if job.follower:
            job.follower.accept(token, decoding.stop_ids)
        is_end = token in decoding.stop_ids
        piece = "" if is_end else job.stream.push(token)
        is_end = is_end or job.stream.is_stopped
        is_last = is_end or len(job.ids) >= job.request.max_new_tokens
        if is_last:
            piece += job.stream.finish()
            is_end = is_end or job.stream.is_stopped
            self.cancel(job)
        return Event(
            job=job,
            token=token,
            piece=piece,
            logprob=logprob,
            top_logprobs=top_logprobs,
            completion=job.completion("stop" if is_end else "length") if is_last else None,
        )

    def _fail(self, job: Job, error: Qwen3Error) -> Event:
        """End one request alone."""
        self.cancel(job)
        return Event(job=job, token=-1, piece="", error=error)

    def _leave(self, job: Job) -> None:
        if job.region is not None:
            self.pool.leave(job.region)
            job.region = None


def _decode_input(job: Job) -> tuple[int, int, int]:
    """Return where a job's region starts, its newest token and that token's position."""
    assert job.region is not None
    return job.region.start, job.ids[-1], len(job.request.prompt_ids) + len(job.ids) - 1


def score_prompt(job: Job, logits_LV: np.ndarray, start: int) -> None:
    """Keep the log-probabilities of the tokens of a prompt that follow those from `start` on."""
    ids, count = job.request.prompt_ids, job.request.decoding.prompt_logprobs
    assert count is not None
    for logits_V, token in zip(logits_LV, ids[start + 1 :], strict=False):
        likeliest = likeliest_log_probabilities(logits_V, count)
        job.prompt_logprobs.append((log_probability(logits_V, token), likeliest))


def num_equal(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids two sequences have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
