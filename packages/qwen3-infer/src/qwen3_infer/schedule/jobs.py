"""Requests in work: their tokens so far, the events that report them, and the completion at the end."""

from dataclasses import dataclass, field

import numpy as np

from qwen3_infer.sampling.grammar import Follower
from qwen3_infer.sampling.penalties import Penalties
from qwen3_infer.sampling.restriction import Restriction
from qwen3_infer.schedule.requests import Request
from qwen3_infer.steps.pieces import ALIGN, round_up
from qwen3_infer.steps.token_pool import Region
from qwen3_infer.text.text_stream import TextStream
from qwen3_model.errors import Qwen3Error


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How many requests and tokens are computed together."""

    num_requests: int
    """Most requests."""
    num_tokens: int | None = None
    """Most tokens in the cache; None for as many as `num_requests` of the longest requests need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The result of a request."""

    request: Request
    """The request that this answers."""
    ids: tuple[int, ...]
    """The tokens generated, with the end-of-text token if there was one."""
    text: str
    """The tokens' text, up to the stop string or the end-of-text token."""
    finish_reason: str
    """"stop" for an end-of-text token or a stop string, "length" otherwise."""
    logprobs: tuple[float, ...] = ()
    """The model's log-probability of each token, before any penalty, temperature or cut; if asked for."""
    num_shared: int = 0
    """Tokens of the prompt that were copied from another request instead of being read."""


TokenLogprobs = tuple[float, tuple[tuple[int, float], ...]]
"""A token's log-probability, and the likeliest tokens at its position with theirs."""


@dataclass(eq=False, slots=True)
class Job:
    """A request in work."""

    request: Request
    rng: np.random.Generator
    stream: TextStream
    penalties: Penalties
    """The settings of sampling, with the tokens that are there already."""
    region: Region | None = None
    num_read: int = 0
    """Tokens of the prompt that are in the region."""
    source: Region | None = None
    """The region that the prompt's beginning is copied from once it is read; None where none is awaited."""
    num_shared: int = 0
    """Tokens of that beginning."""
    follower: Follower | None = None
    """What the answer's grammar allows, if it has one."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Log-probabilities of each token of the prompt but the first, if asked for."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def completion(self, finish_reason: str) -> Completion:
        """Return the request's result."""
        return Completion(
            request=self.request,
            ids=tuple(self.ids),
            text=self.stream.text,
            finish_reason=finish_reason,
            logprobs=tuple(self.logprobs),
            num_shared=self.num_shared,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A new token of a request."""

    job: Job
    token: int
    piece: str
    """The text that no later token can change, often empty."""
    logprob: float | None = None
    """The token's log-probability, if asked for."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log-probabilities, if asked for."""
    completion: Completion | None = None
    """The result, with the last token; None before."""
    error: Qwen3Error | None = None
    """Why the request failed, in which case there is no token; None where it did not."""


def restriction(job: Job) -> Restriction | None:
    """Return which tokens may not follow; None when all may.

    Raises:
        GrammarError: The answer's grammar has become too complex.
    """
    decoding = job.request.decoding
    found = job.follower.restriction(decoding.stop_ids) if job.follower else None
    if len(job.ids) >= decoding.min_tokens:
        return found
    # A grammar that allows nothing but the end goes before.
    return Restriction(allowed=found.allowed if found else None, forbidden=tuple(decoding.stop_ids))


def tokens_needed(request: Request) -> int:
    """Return the room for a prompt, filled up to its last piece, and its completion."""
    num_prompt = len(request.prompt_ids)
    return max(round_up(num_prompt, ALIGN), num_prompt + request.max_new_tokens)
