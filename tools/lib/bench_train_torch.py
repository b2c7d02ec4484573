"""The same steps by transformers and torch, in an environment that has them; prints one line of JSON."""

import json
import math
import os
import sys
import time

from measures import peak_bytes


def main() -> None:
    case = json.loads(sys.argv[1])
    import numpy as np
    import torch

    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    model, adam = make_model(case), case["adam"]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = make_optimizer(trained, adam)
    vocabulary = case["model"]["vocab_size"]
    text = np.random.default_rng(0).integers(0, vocabulary, (1, case["tokens"] + 1)).astype(np.int32)
    ids, labels = torch.tensor(text[:, :-1]).long(), torch.tensor(text[:, 1:]).long()
    results = {"losses": [], "wall_s": [], "cpu_s": []}
    for number in range(1, case["steps"] + 2):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        loss = model(input_ids=ids, labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, adam["max_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        if number == 1:
            results["first_step_s"] = round(time.time() - float(os.environ["BENCH_BEGAN"]), 2)
            results["first_step_cpu_s"] = round(time.process_time(), 2)
        else:
            results["wall_s"].append(time.perf_counter() - wall_s)
            results["cpu_s"].append(time.process_time() - cpu_s)
        if number <= 3:
            results["losses"].append(round(value, 6))
    results["peak_gb"] = round(peak_bytes() / 1e9, 3)
    size, best_s = 2048, math.inf
    square = torch.ones(size, size)
    for _ in range(8):
        began_s = time.perf_counter()
        square @ square
        best_s = min(best_s, time.perf_counter() - began_s)
    results["matmul_gflops"] = round(2 * size**3 / best_s / 1e9, 1)
    print(json.dumps(results))


def make_model(case: dict) -> object:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(**case["model"], use_cache=False)).float()
    if "adapters" in case:
        from peft import LoraConfig, get_peft_model

        chosen = case["adapters"]
        model = get_peft_model(
            model,
            LoraConfig(
                r=chosen["rank"], lora_alpha=chosen["alpha"], target_modules=chosen["modules"],
                task_type="CAUSAL_LM",
            ),
        )  # fmt: skip
    model.train()
    return model


def make_optimizer(trained: list, adam: dict) -> object:
    import torch

    groups = [
        {"params": [weight for weight in trained if weight.ndim > 1], "weight_decay": adam["weight_decay"]},
        {"params": [weight for weight in trained if weight.ndim == 1], "weight_decay": 0.0},
    ]
    # The fused kernel is the fastest that torch has on a CPU.
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=adam["lr"], betas=(adam["beta1"], adam["beta2"]), eps=adam["eps"], fused=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
