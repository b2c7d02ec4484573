"""The same measurements of llama.cpp through llama-cpp-python, on a GGUF file; prints one line of JSON."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from measures import peak_bytes

PROMPT_TOKENS, PREFILL_TOKENS = 16, 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-dir", type=Path, required=True)  # the GGUF file
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    started_s = time.perf_counter()
    from llama_cpp import Llama

    model = Llama(
        str(options.model_dir), n_ctx=PREFILL_TOKENS + options.new_tokens + 8, n_threads=options.threads,
        n_threads_batch=options.threads, n_batch=PREFILL_TOKENS, verbose=False,
    )  # fmt: skip
    ids = [int(number) for number in np.random.default_rng(0).integers(0, 1000, PREFILL_TOKENS)]
    model.eval(ids[:PROMPT_TOKENS])
    found = {"first token s": time.perf_counter() - started_s}
    began_s = time.perf_counter()
    for token in ids[: options.new_tokens]:
        model.eval([token])
    found["batch 1 tok/s"] = options.new_tokens / (time.perf_counter() - began_s)
    best_s = float("inf")
    for _ in range(4):
        model.reset()
        began_s = time.perf_counter()
        model.eval(ids)
        best_s = min(best_s, time.perf_counter() - began_s)
    found["prefill tok/s"] = PREFILL_TOKENS / best_s
    found["peak GB"] = peak_bytes() / 1e9
    print(json.dumps({key: round(value, 2) for key, value in found.items()}))


if __name__ == "__main__":
    main()
