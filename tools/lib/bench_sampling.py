"""What a step of many requests spends on choosing tokens, see tools/bench_sampling."""

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qwen3_infer.native.build import native_library
from qwen3_infer.native.chooser import NativeChooser
from qwen3_infer.sampling.sampling import Sampling
from qwen3_infer.schedule.requests import Request
from qwen3_infer.schedule.scheduler import Scheduler
from qwen3_infer.settings.settings import Decoding
from qwen3_infer.text.prompts import Prompt

PROMPT_TOKENS = 1000
SETTINGS: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {},
    "temperature 0.7": {"temperature": 0.7},
    "top_k 20": {"top_k": 20},
    "top_k 50": {"top_k": 50},
    "top_k 5000": {"top_k": 5000},
    "top_p 0.8": {"top_p": 0.8},
    "top_p 0.95": {"top_p": 0.95},
    "top_p 0.999": {"top_p": 0.999},
    "min_p 0.05": {"min_p": 0.05},
    "min_p 1e-6": {"min_p": 1e-6},
    "temperature 0.6, top_k 20, top_p 0.95": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "top_k 5000, top_p 0.95, min_p 1e-3": {"top_k": 5000, "top_p": 0.95, "min_p": 1e-3},
    "three penalties, greedy": {
        "temperature": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5,
    },
    "three penalties, top_p 0.95": {
        "top_p": 0.95, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5,
    },
    "300 biases, temperature 1": {"logit_bias": tuple((token * 500, -1.0) for token in range(300))},
    "greedy, logprobs": {"temperature": 0.0, "logprobs": True},
    "temperature 1, logprobs": {"logprobs": True},
    "greedy, logprobs with 5": {"temperature": 0.0, "logprobs": True, "top_logprobs": 5},
    "top_p 0.95, logprobs with 20": {"top_p": 0.95, "logprobs": True, "top_logprobs": 20},
    "all of it": {
        "temperature": 0.9, "top_p": 0.95, "min_p": 1e-4, "repetition_penalty": 1.1, "presence_penalty": 0.5,
        "frequency_penalty": 0.5, "logprobs": True, "top_logprobs": 20,
    },
}  # fmt: skip


def make_logits(kind: str, num_rows: int, vocab_size: int, seed: int) -> np.ndarray:
    """Return rows of logits, float32."""
    rng = np.random.default_rng(seed)
    if kind == "equal":
        return np.zeros((num_rows, vocab_size), np.float32)
    if kind == "flat":
        return rng.standard_normal((num_rows, vocab_size), np.float32)
    logits = 2.5 * rng.standard_normal((num_rows, vocab_size), np.float32)
    for row in logits:  # some tokens that stand out, as those of a trained model
        row[rng.integers(0, vocab_size, 30)] += 10 + rng.exponential(4, 30).astype(np.float32)
    return logits


class Engine:
    """Gives out logits that are there already."""

    unit, pieces, shares_beginnings = 64, (1024, 64), False

    def __init__(self, batches: Sequence[np.ndarray], **attributes: object) -> None:
        self.batches, self.num_rows = itertools.cycle(batches), len(batches[0])
        self.num_tokens = self.num_rows * 4096
        vars(self).update(attributes)

    def read(self, *_: object) -> np.ndarray:
        """Return the logits behind a prompt."""
        return next(self.batches)[0]

    def decode(self, starts_B: np.ndarray, *_: object) -> list[np.ndarray]:
        """Return those of a step."""
        return list(next(self.batches)[: len(starts_B)])


class Text:
    """A tokenizer of one character for each token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return so many characters."""
        return "a" * len(ids)


def measure(
    settings: Sequence[dict[str, object]], engine: Engine, vocab_size: int, steps: int
) -> tuple[float, float]:
    """Return a step's milliseconds and those of the processor, medians; request i has settings i modulo n."""
    scheduler = Scheduler(engine, Text())  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    for index in range(engine.num_rows):
        given = dict(settings[index % len(settings)])
        wanted = {name: given.pop(name) for name in ("logprobs", "top_logprobs") if name in given}
        decoding = Decoding(
            sampling=Sampling(**given), max_new_tokens=2000, is_length_explicit=True,
            stop_ids=frozenset(), stop_strings=(), **wanted,
        )  # fmt: skip
        ids = tuple(rng.integers(0, vocab_size, PROMPT_TOKENS).tolist())
        request = Request(
            index=index, prompt=Prompt(text="prompt"), prompt_ids=ids, max_new_tokens=2000, decoding=decoding,
            seed=0,
        )  # fmt: skip
        scheduler.submit(request)
    scheduler.advance()
    for job in scheduler.reading:
        job.num_read = PROMPT_TOKENS // 64 * 64  # this engine reads nothing
    while scheduler.reading:
        scheduler.advance()
    taken = []
    for _ in range(steps):
        start = time.perf_counter(), time.process_time()
        events = scheduler.advance()
        taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        assert len(events) == engine.num_rows
        assert not any(event.error for event in events)
    wall, processor = 1e3 * np.median(taken, axis=0)
    return float(wall), float(processor)


def main() -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--kinds", default="peaked,flat")
    parser.add_argument("--only", default="", help="settings whose names contain this")
    parser.add_argument("--portable", action="store_true", help="numpy alone")
    arguments = parser.parse_args()
    kernels = {}
    if not arguments.portable:
        library = native_library(Path.home() / ".cache/qwen3-infer", arguments.threads)
        kernels = {"chooser": NativeChooser(library)}
    chosen = {name: [values] for name, values in SETTINGS.items() if arguments.only in name}
    if not arguments.only:
        chosen["every request another of these"] = list(SETTINGS.values())
    kinds = arguments.kinds.split(",")
    batches = {
        kind: [make_logits(kind, arguments.rows, arguments.vocab, seed) for seed in range(2)]
        for kind in kinds
    }
    print("settings", *kinds, "(ms of a step and of the processor, medians)", sep=" | ")
    for name, settings in chosen.items():
        cells = []
        for kind in kinds:
            engine = Engine(batches[kind], **kernels)
            cells.append("{:.1f} {:.1f}".format(*measure(settings, engine, arguments.vocab, arguments.steps)))
        print(name, *cells, sep=" | ", flush=True)


if __name__ == "__main__":
    main()
