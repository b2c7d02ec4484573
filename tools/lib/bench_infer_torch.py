"""The same measurements of transformers, in an environment that has it; prints one line of JSON."""

import argparse
import json
import time
from pathlib import Path

from measures import peak_bytes

PROMPT_TOKENS, BATCH, PREFILL_TOKENS = 16, 8, 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dtype")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    started_s = time.perf_counter()
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        options.model_dir, dtype=getattr(torch, options.dtype)
    ).eval()

    def seconds(rows: int, length: int, new_tokens: int) -> float:
        ids = torch.randint(0, 1000, (rows, length))
        settings = GenerationConfig(
            do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=0
        )
        began_s = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return time.perf_counter() - began_s

    def decode_speed(rows: int) -> float:
        # The difference leaves out the prompt.
        short_s = seconds(rows, PROMPT_TOKENS, 1)
        return rows * (options.new_tokens - 1) / (seconds(rows, PROMPT_TOKENS, options.new_tokens) - short_s)

    seconds(1, PROMPT_TOKENS, 1)
    found = {"first token s": time.perf_counter() - started_s, "batch 1 tok/s": decode_speed(1)}
    found["prefill tok/s"] = PREFILL_TOKENS / min(seconds(1, PREFILL_TOKENS, 1) for _ in range(3))
    found["batch 8 tok/s"] = decode_speed(BATCH)
    found["peak GB"] = peak_bytes() / 1e9
    print(json.dumps({key: round(value, 2) for key, value in found.items()}))


if __name__ == "__main__":
    main()
