"""What grows with a server's tokens and requests, apart from the model's own arithmetic."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from bench_scale_series import Series, cpu_s

from qwen3_infer.sampling.sampling import Sampling
from qwen3_infer.schedule.requests import Request
from qwen3_infer.schedule.scheduler import Scheduler
from qwen3_infer.settings.settings import Decoding
from qwen3_infer.steps.pieces import ALIGN
from qwen3_infer.text.prompts import Prompt
from qwen3_infer.text.text_stream import TextStream
from qwen3_model.text.tokenizer import Qwen3Tokenizer

TOKENIZER = Path(__file__).resolve().parents[1] / "demo_data/tokenizer"
ROWS = 64
CALLS, NEW_TOKENS = 32, 1024


def stream() -> Iterator[Series]:
    """Text out of tokens one by one: such that text follows, and such that it does not."""
    tokenizer = Qwen3Tokenizer.from_dir(TOKENIZER)
    sizes = [1000, 2000, 4000, 8000, 16000]
    words = tokenizer.encode("To be, or not to be, that is the question. ")
    special = tokenizer.encode("<|im_start|>", allow_special=True)
    broken = [number for number in tokenizer.encode("\U0001f9ea") if "\ufffd" in tokenizer.decode([number])][
        :1
    ]
    for what, ids in (("of words", words), ("that are special", special), ("that are no character", broken)):
        yield Series(
            what=f"Text of tokens {what}, one by one",
            unit="CPU s",
            sizes=sizes,
            costs=[cpu_s(lambda n=n, ids=ids: _push(tokenizer, (ids * n)[:n])) for n in sizes],
            target=131_072,
        )


def queue() -> Iterator[Series]:
    """A step of 64 requests while one waits without room, by the tokens that all begin with."""
    sizes = [1024, 4096, 16384, 32768]
    waiting = [_step_s(size, waits=True) * 1000 for size in sizes]
    yield Series(
        what="Schedule of 64 requests while one waits, by common tokens", unit="CPU ms a step", sizes=sizes,
        costs=waiting, target=131_072,
    )  # fmt: skip
    costs = [_step_s(size, waits=False) * 1000 for size in sizes]
    yield Series(what="while none waits", unit="CPU ms a step", sizes=sizes, costs=costs, target=131_072)


def _push(tokenizer: Qwen3Tokenizer, ids: Sequence[int]) -> None:
    pushed = TextStream(tokenizer)
    for number in ids:
        pushed.push(number)
    pushed.finish()


class _Nothing:
    """An engine that computes nothing."""

    unit, shares_beginnings, pieces, num_rows = ALIGN, True, (2048, 128, 32), ROWS + 1

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._logits_V = np.eye(1, 8, 1, dtype=np.float32)[0]

    def read(self, start: int, ids: Sequence[int], position: int, length: int) -> np.ndarray:
        return self._logits_V

    def decode(self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray) -> list[np.ndarray]:
        return [self._logits_V] * len(starts_B)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        return


def _step_s(num_common: int, *, waits: bool) -> float:
    """Return the CPU seconds of a step of 64 running requests."""
    rng = np.random.default_rng(0)
    common = tuple(rng.integers(8, 4000, num_common).tolist())
    room = -(-(num_common + NEW_TOKENS) // ALIGN) * ALIGN
    scheduler = Scheduler(_Nothing(ROWS * room), Qwen3Tokenizer.from_dir(TOKENIZER))
    for index in range(ROWS):
        scheduler.submit(_request(index, common))
    while len(scheduler.running) < ROWS:
        scheduler.advance()
    if waits:
        scheduler.submit(_request(ROWS, common))
    spent = cpu_s(lambda: [scheduler.advance() for _ in range(CALLS)])
    if len(scheduler.running) != ROWS or len(scheduler.waiting) != waits:
        raise SystemExit("the requests do not run as meant")
    return spent / CALLS


def _request(index: int, ids: tuple[int, ...]) -> Request:
    decoding = Decoding(
        sampling=Sampling(temperature=0.0), max_new_tokens=NEW_TOKENS, is_length_explicit=True,
        stop_ids=frozenset(), stop_strings=(),
    )  # fmt: skip
    return Request(
        index=index,
        prompt=Prompt(text=""),
        prompt_ids=ids,
        max_new_tokens=NEW_TOKENS,
        decoding=decoding,
        seed=0,
    )
