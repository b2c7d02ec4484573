"""Which request's tokens the model computes next: requests join and leave the running batch at any token.

Each call of the engine reads one piece of one prompt or adds one token to every running request. What a
request gets depends on itself alone: its own prefill, its own random numbers, its own stop rules.

B requests in a batch, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from qwen3_infer.sampling.grammar import GrammarError, Grammars
from qwen3_infer.sampling.logits import Likeliest, Logits
from qwen3_infer.sampling.penalties import Penalties
from qwen3_infer.sampling.rows import Chooser, Chosen, Row, choose_rows
from qwen3_infer.sampling.sampling import likeliest_log_probabilities, log_probability, make_generator
from qwen3_infer.schedule.allocation import RegionAllocator
from qwen3_infer.schedule.engine import Engine
from qwen3_infer.schedule.jobs import Event, Job, restriction, tokens_needed
from qwen3_infer.schedule.requests import Request
from qwen3_infer.steps.pieces import PIECES, cut
from qwen3_infer.steps.token_pool import TokenPool
from qwen3_infer.text.text_stream import TextStream
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError, Qwen3Error, WeightError
from qwen3_model.text.tokenizer import Qwen3Tokenizer

MOST_READ_BETWEEN = 4 * PIECES[0]
"""Most tokens of prompts that are read between two tokens of a running request."""


class Scheduler:
    """Take requests of one engine from the queue through the reading of their prompts to their last token."""

    def __init__(self, engine: Engine, tokenizer: Qwen3Tokenizer) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        # Only native kernels bring it.
        self._chooser: Chooser | None = getattr(engine, "chooser", None)
        self.grammars = Grammars(tokenizer)
        """Compiles what answers must follow; on any thread."""
        self._regions = RegionAllocator(engine)
        self.waiting: deque[Job] = deque()
        self.reading: list[Job] = []
        self.running: list[Job] = []
        self._num_pieces = self._num_tokens_read = 0
        self._oldest_is_next = False

    @property
    def pool(self) -> TokenPool:
        """The cache's slots, used and free."""
        return self._regions.pool

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
        num_needed = self.pool.size_for(tokens_needed(request))
        if num_needed > self.pool.num_tokens:
            raise ConfigError(
                f"a prompt of {counted(len(request.prompt_ids), 'token')} with {request.max_new_tokens} new "
                "ones takes "
                f"{counted(num_needed, 'token')} of a cache that has {self.pool.num_tokens}; shorten one of "
                "them"
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
        rng = make_generator(request.seed, request.index, request.sample)
        penalties = Penalties(request.decoding.sampling, request.prompt_ids)
        job = Job(request, rng, stream, penalties)
        job.follower = follower
        self.waiting.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Forget a request; do nothing where it is done already."""
        for jobs in (self.waiting, self.reading, self.running):
            if job in jobs:
                jobs.remove(job)
        self._regions.release(job)

    def cancel_all(self) -> None:
        """Forget every request and the contents of the cache."""
        self.waiting.clear()
        self.reading.clear()
        self.running.clear()
        self._regions = RegionAllocator(self._engine)

    def advance(self) -> list[Event]:
        """Call the engine once, for one piece of a prompt or a token of each running request."""
        self._admit_waiting()
        reader = self._choose_reader()
        if reader and (not self.running or self._may_read_more()):
            return self._read_piece(reader)
        return self._decode() if self.running else []

    def _admit_waiting(self) -> None:
        """Let the first in the queue be read, one after the other, as long as there is room."""
        while self.waiting and len(self.reading) + len(self.running) < self._engine.num_rows:
            if not self._regions.allocate(self.waiting[0], self.reading):
                return
            self.reading.append(self.waiting.popleft())

    def _choose_reader(self) -> Job | None:
        """Return the job whose prompt is read next; None while all wait for a prefix.

        It is the one with the least left to read, but after each other one the oldest has its turn.
        """
        for job in self.reading:
            self._regions.copy_if_read(job, self.reading)
        ready = [job for job in self.reading if job.source is None]
        if not ready:
            return None
        if self._oldest_is_next:
            return ready[0]
        return min(ready, key=lambda job: len(job.request.prompt_ids) - job.num_read)

    def _may_read_more(self) -> bool:
        """Return whether another piece may be read before the running requests' next tokens.

        The more requests wait for their first token and the fewer run, the more pieces are read in between.
        """
        most = -(-len(self.reading) // (len(self.running) + 1))
        return self._num_pieces < most and self._num_tokens_read < MOST_READ_BETWEEN

    def _read_piece(self, job: Job) -> list[Event]:
        """Read the next piece of a job's prompt; return the first token where it was the last piece."""
        ids, region = job.request.prompt_ids, job.region
        assert region is not None
        is_scored = job.request.decoding.prompt_logprobs is not None
        # The logits of every token of a long piece would take much memory.
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
        region.ids.extend(piece)
        job.num_read += len(piece)
        self._num_pieces += 1
        self._num_tokens_read += length
        self._oldest_is_next = job is not self.reading[0]
        if job.num_read < len(ids):
            return []
        self.reading.remove(job)
        self.running.append(job)
        return self._accept([job], [logits])

    def _decode(self) -> list[Event]:
        """Return a new token of each running request."""
        self._num_pieces = self._num_tokens_read = 0
        jobs = list(self.running)
        starts, tokens, positions = zip(*map(_decode_input, jobs), strict=True)
        rows = self._engine.decode(*(np.array(each, np.int32) for each in (starts, tokens, positions)))
        for job in jobs:
            assert job.region is not None
            job.region.ids.append(job.ids[-1])
        return self._accept(jobs, rows)

    def _accept(self, jobs: Sequence[Job], logits: Sequence[Logits]) -> list[Event]:
        """Choose the next token of each job; a job that is done gives its region back."""
        found: dict[Job, Chosen | Qwen3Error] = {}
        rows: dict[Job, Row] = {}
        for job, each in zip(jobs, logits, strict=True):
            try:
                row = _row(job, each)
            except GrammarError as error:
                found[job] = error
                continue
            if isinstance(row, Row):
                rows[job] = row
            else:
                found[job] = Chosen(row)
        for job, chosen in zip(rows, choose_rows(list(rows.values()), self._chooser), strict=True):
            found[job] = chosen or _refuse_nan(job)
        return [self._go_on(job, found[job]) for job in jobs]

    def _go_on(self, job: Job, chosen: Chosen | Qwen3Error) -> Event:
        if isinstance(chosen, Qwen3Error):
            return self._fail(job, chosen)
        if chosen.logprob is not None:
            job.logprobs.append(chosen.logprob)
        return self._add(job, chosen)

    def _add(self, job: Job, chosen: Chosen) -> Event:
        decoding, token = job.request.decoding, chosen.token
        job.ids.append(token)
        job.penalties.add(token)
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
            logprob=chosen.logprob,
            top_logprobs=chosen.top,
            completion=job.completion("stop" if is_end else "length") if is_last else None,
        )

    def _fail(self, job: Job, error: Qwen3Error) -> Event:
        """End one request alone."""
        self.cancel(job)
        return Event(job=job, token=-1, piece="", error=error)


def _decode_input(job: Job) -> tuple[int, int, int]:
    """Return where a job's region starts, its newest token and that token's position."""
    assert job.region is not None
    return job.region.start, job.ids[-1], len(job.request.prompt_ids) + len(job.ids) - 1


def _row(job: Job, logits: Logits) -> Row | int:
    """Return what is to be chosen from, or the token where the likeliest logits are enough.

    Raises:
        GrammarError: The answer's grammar has become too complex.
    """
    decoding, restricted = job.request.decoding, restriction(job)
    if isinstance(logits, Likeliest):
        wants_all = decoding.logprobs or decoding.top_logprobs or restricted
        token = None if wants_all else logits.choose(decoding.sampling, job.rng)
        if token is not None:
            return token
        logits = logits.whole()
    return Row(
        logits_V=logits,
        penalties=job.penalties,
        number=0.0 if decoding.sampling.is_greedy else job.rng.random(),
        restriction=restricted,
        logprob=decoding.logprobs,
        num_top=decoding.top_logprobs,
    )


def _refuse_nan(job: Job) -> WeightError:
    if job.region:
        job.region.ids.clear()
    return WeightError("the model computes NaN or infinity; check its weights with qwen3-model verify")


def score_prompt(job: Job, logits_LV: np.ndarray, start: int) -> None:
    """Append to `job.prompt_logprobs` the log-probability of each token that follows one of a piece.

    Args:
        job: Its prompt's tokens are scored.
        logits_LV: The logits after each token of the piece.
        start: Position of the piece's first token.
    """
    ids, count = job.request.prompt_ids, job.request.decoding.prompt_logprobs
    assert count is not None
    for logits_V, token in zip(logits_LV, ids[start + 1 :], strict=False):
        likeliest = likeliest_log_probabilities(logits_V, count)
        job.prompt_logprobs.append((log_probability(logits_V, token), likeliest))
