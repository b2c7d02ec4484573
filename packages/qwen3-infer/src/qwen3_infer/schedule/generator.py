"""Completions of a list of requests, in the order in which they are finished."""

from collections.abc import Callable, Iterable, Iterator

from qwen3_infer.schedule.engine import Engine
from qwen3_infer.schedule.jobs import Completion
from qwen3_infer.schedule.requests import Request
from qwen3_infer.schedule.scheduler import Scheduler
from qwen3_model.text.tokenizer import Qwen3Tokenizer


def generate(
    requests: Iterable[Request],
    engine: Engine,
    tokenizer: Qwen3Tokenizer,
    on_text: Callable[[Request, str], None] | None = None,
) -> Iterator[Completion]:
    """Yield each request's completion as soon as it is finished.

    Args:
        requests: In any number; they wait until there is room.
        engine: Runs the model.
        tokenizer: The model's.
        on_text: Is given each new piece of text of each request.

    Raises:
        ConfigError: A request is too long for the engine's cache.
        WeightError: The model computes NaN.
    """
    yield from run(requests, Scheduler(engine, tokenizer), on_text)


def run(
    requests: Iterable[Request],
    scheduler: Scheduler,
    on_text: Callable[[Request, str], None] | None = None,
) -> Iterator[Completion]:
    """Do the same with a scheduler whose cache keeps what earlier requests left there."""
    for request in requests:
        scheduler.submit(request)
    while not scheduler.is_idle:
        for event in scheduler.advance():
            if event.error:
                raise event.error
            if on_text and event.piece:
                on_text(event.job.request, event.piece)
            if event.completion:
                yield event.completion
