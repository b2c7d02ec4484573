"""The loop that drives an engine: requests take rows, tokens are chosen per row, free rows go to the next.

What a row gets depends on its request alone: its own prefill, its own random numbers, its own stop rules.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from qwen3_infer.requests import Request
from qwen3_infer.sampling import choose, log_probability, make_generator
from qwen3_infer.text_stream import TextStream
from qwen3_model.errors import WeightError
from qwen3_model.tokenizer import Qwen3Tokenizer


class Engine(Protocol):
    """A model with a cache of rows. V vocabulary, R rows."""

    num_rows: int

    def prefill(self, row: int, ids: Sequence[int]) -> np.ndarray:
        """Start `row` anew with these ids and return the logits after the last, float32 (V,)."""
        ...

    def decode(self, tokens_R: np.ndarray, positions_R: np.ndarray) -> np.ndarray:
        """Add one token to each row, at its position, and return the logits after it, float32 (R, V)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What came of a request."""

    request: Request
    """What was asked."""
    ids: tuple[int, ...]
    """The tokens generated, with the end-of-text token if there was one."""
    text: str
    """Their text, up to the stop string or the end-of-text token."""
    finish_reason: str
    """"stop" for an end-of-text token or a stop string, "length" otherwise."""
    logprobs: tuple[float, ...] = ()
    """The model's log-probability of each token, before any penalty, temperature or cut; if asked for."""


@dataclass(slots=True)
class _Row:
    request: Request
    rng: np.random.Generator
    stream: TextStream
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def generate(
    requests: Iterable[Request],
    engine: Engine,
    tokenizer: Qwen3Tokenizer,
    on_text: Callable[[Request, str], None] | None = None,
) -> Iterator[Completion]:
    """Yield each request's completion as soon as it is finished.

    Args:
        requests: In any number; they wait until a row is free.
        engine: Runs the model.
        tokenizer: The model's.
        on_text: Is given each new piece of text of each request.

    Raises:
        WeightError: The model computes NaN.
    """
    waiting = deque(requests)
    rows: list[_Row | None] = [None] * engine.num_rows
    while waiting or any(rows):
        for number in range(engine.num_rows):
            while rows[number] is None and waiting:
                request = waiting.popleft()
                row = _new_row(request, tokenizer)
                finished = _accept(row, engine.prefill(number, request.prompt_ids), on_text)
                if finished:
                    yield finished
                else:
                    rows[number] = row
        if not any(rows):
            continue
        logits_RV = engine.decode(*_inputs(rows))
        for number, active in enumerate(rows):
            if active and (finished := _accept(active, logits_RV[number], on_text)):
                rows[number] = None
                yield finished


def _new_row(request: Request, tokenizer: Qwen3Tokenizer) -> _Row:
    stream = TextStream(tokenizer, request.decoding.stop_strings)
    return _Row(request, make_generator(request.seed, request.index, request.sample), stream)


def _inputs(rows: Sequence[_Row | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's newest token and its position; an idle row writes where its next prefill will."""
    tokens_R, positions_R = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int32)
    for number, row in enumerate(rows):
        if row:
            tokens_R[number] = row.ids[-1]
            positions_R[number] = len(row.request.prompt_ids) + len(row.ids) - 1
    return tokens_R, positions_R


def _accept(
    row: _Row, logits_V: np.ndarray, on_text: Callable[[Request, str], None] | None
) -> Completion | None:
    """Choose the row's next token; return its completion if that was the last."""
    request, decoding = row.request, row.request.decoding
    if not np.isfinite(logits_V.max()):
        raise WeightError("the model computes NaN or infinity; check its weights with qwen3-model verify")
    token = choose(logits_V, decoding.sampling, row.rng, request.prompt_ids, row.ids)
    row.ids.append(token)
    if decoding.logprobs:
        row.logprobs.append(log_probability(logits_V, token))
    is_end = token in decoding.stop_ids
    piece = "" if is_end else row.stream.push(token)
    is_end = is_end or row.stream.is_stopped
    is_last = is_end or len(row.ids) >= request.max_new_tokens
    if is_last:
        piece += row.stream.finish()
        is_end = is_end or row.stream.is_stopped
    if on_text and piece:
        on_text(request, piece)
    if not is_last:
        return None
    return Completion(
        request=request,
        ids=tuple(row.ids),
        text=row.stream.text,
        finish_reason="stop" if is_end else "length",
        logprobs=tuple(row.logprobs),
    )
