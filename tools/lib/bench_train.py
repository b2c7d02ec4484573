"""Take training steps in a process of its own for each contestant, in turns, and print the best of each.

Ours goes through the trainer's own step. A contestant prints one line of JSON; `bench_train_torch.py` has the
other's.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measures import peak_bytes

HERE = Path(__file__).resolve()
TORCH_SCRIPT = HERE.with_name("bench_train_torch.py")
TINY = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
WIDE = {
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 4,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
COMMON = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
ADAPTED = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
ADAPTERS = {"rank": 8, "alpha": 16, "modules": ADAPTED}
CASES: dict[str, dict] = {
    "tiny": {"model": TINY | COMMON, "tokens": 64, "steps": 50},
    "4": {"model": WIDE | COMMON, "tokens": 256, "steps": 5},
    "28": {"model": WIDE | COMMON | {"num_hidden_layers": 28}, "tokens": 256, "steps": 3},
    "lora": {"model": WIDE | COMMON, "tokens": 256, "steps": 5, "adapters": ADAPTERS},
}
DEFAULT_CASES = ("tiny", "4")
ADAM = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "max_norm": 1.0}
OURS, THEIRS = "qwen3-train", "transformers + torch"


def main() -> None:
    parser = argparse.ArgumentParser(description="A step of qwen3-train beside transformers + torch.")
    parser.add_argument("--case", nargs="*", choices=CASES, default=DEFAULT_CASES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="after the first, in each round")
    parser.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--torch-python", type=Path)
    parser.add_argument("--only", choices=("qwen3", "torch"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(json.loads(options.child))))
        return
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)  # inherited, so that no contestant has more cores than another
    print(f"{len(cores)} cores, load {os.getloadavg()[0]:.1f} at the start")
    for name in options.case:
        compare(name, CASES[name] | {"threads": options.threads, "adam": ADAM}, options)


def compare(name: str, case: dict, options: argparse.Namespace) -> None:
    if options.steps:
        case["steps"] = options.steps
    found: dict[str, list[dict]] = {}
    for number in range(options.rounds):
        for contestant, command in contestants(case, options).items():
            result = run(contestant, command, options.threads)
            if result:
                found.setdefault(contestant, []).append(result)
                told = {key: value for key, value in result.items() if key not in ("wall_s", "cpu_s")}
                print(f"  round {number + 1}, {contestant}: {json.dumps(told)}", file=sys.stderr)
    show(name, case, found)


def contestants(case: dict, options: argparse.Namespace) -> dict[str, list[str]]:
    commands = {}
    if options.only != "torch":
        commands[OURS] = [sys.executable, str(HERE), "--child", json.dumps(case)]
    if options.only != "qwen3":
        if options.torch_python and options.torch_python.exists():
            commands[THEIRS] = [str(options.torch_python), str(TORCH_SCRIPT), json.dumps(case)]
        else:
            print("torch is left out: tools/parity makes its environment", file=sys.stderr)
    return commands


def run(name: str, command: list[str], threads: int) -> dict | None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "GLOG_v": "3"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment | {"BENCH_BEGAN": str(time.time())},
        check=False,
    )
    if done.returncode:
        print(f"  {name} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def show(name: str, case: dict, found: dict[str, list[dict]]) -> None:
    model, tokens = case["model"], case["tokens"]
    print(f"\ncase {name}: {model['num_hidden_layers']} layers of {model['hidden_size']}, vocabulary "
          f"{model['vocab_size']}, {tokens} tokens, float32")  # fmt: skip
    peak = max(
        (result["matmul_gflops"] for results in found.values() for result in results), default=math.nan
    )
    heads = (
        "wall s: best",
        "median",
        "cpu s: best",
        "median",
        "tok/s",
        "peak GB",
        "first step s",
        "its cpu s",
    )
    print(f"{'':30}" + "".join(f"{head:>14}" for head in (*heads, "of matmul")))
    best: dict[str, tuple[float, float, float]] = {}
    for contestant, results in found.items():
        wall_s = [value for result in results for value in result["wall_s"]]
        cpu_s = [value for result in results for value in result["cpu_s"]]
        first = min(results, key=lambda result: result["first_step_cpu_s"])
        memory_gb = max(result["peak_gb"] for result in results)
        share = step_gflop(case) / min(wall_s) / peak
        best[contestant] = (min(wall_s), min(cpu_s), memory_gb)
        values = (
            f"{min(wall_s):.3f}", f"{statistics.median(wall_s):.3f}", f"{min(cpu_s):.3f}",
            f"{statistics.median(cpu_s):.3f}", f"{tokens / min(wall_s):.1f}", f"{memory_gb:.2f}",
            f"{first['first_step_s']:.1f}", f"{first['first_step_cpu_s']:.1f}", f"{share:.0%}",
        )  # fmt: skip
        print(f"{contestant:30}" + "".join(f"{value:>14}" for value in values))
    print(f"matrix products at {peak:.0f} GFLOP/s; a step has {step_gflop(case):.1f} GFLOP of them")
    if OURS in best and THEIRS in best:
        ours, theirs = best[OURS], best[THEIRS]
        print(f"tokens/s {theirs[0] / ours[0]:.2f} times torch's by wall, {theirs[1] / ours[1]:.2f} by CPU "
              f"seconds; peak memory {best[OURS][2] / theirs[2]:.2f} of torch's")  # fmt: skip


def step_gflop(case: dict) -> float:
    """Count the products of a step in GFLOP: forward, and twice that backward, or once under adapters."""
    model, tokens = case["model"], case["tokens"]
    d, h = model["hidden_size"], model["head_dim"]
    q, kv = model["num_attention_heads"] * h, model["num_key_value_heads"] * h
    layer = 2 * tokens * (d * (2 * q + 2 * kv) + 3 * d * model["intermediate_size"])
    attention = 4 * tokens * tokens * q
    head = 2 * tokens * d * model["vocab_size"]
    layers = model["num_hidden_layers"]
    if "adapters" in case:
        return (2 * (layers * layer + head) + 3 * layers * attention) / 1e9
    return 3 * (layers * (layer + attention) + head) / 1e9


def measure(case: dict) -> dict:
    """Take the steps of `case` with the trainer's own step."""
    import mindspore as ms
    import numpy as np

    from qwen3_train.data.batches import Batch

    step, adam, tokens = make_step(case), case["adam"], case["tokens"]
    text = np.random.default_rng(0).integers(0, case["model"]["vocab_size"], (1, tokens + 1)).astype(np.int32)
    weights = np.full((1, tokens), 1 / tokens, np.float32)
    batch = Batch(text[:, :-1].copy(), text[:, 1:].copy(), weights, None, None)
    results: dict = {"losses": [], "wall_s": [], "cpu_s": []}
    for number in range(1, case["steps"] + 2):
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        loss = step.run([batch], adam["lr"], number).loss
        if number == 1:
            results["first_step_s"] = round(time.time() - float(os.environ["BENCH_BEGAN"]), 2)
            results["first_step_cpu_s"] = round(time.process_time(), 2)
        else:
            results["wall_s"].append(time.perf_counter() - wall_s)
            results["cpu_s"].append(time.process_time() - cpu_s)
        if number <= 3:
            results["losses"].append(round(loss, 6))
    results["peak_gb"] = round(peak_bytes() / 1e9, 3)
    results["matmul_gflops"] = round(matmul_gflops(ms, np), 1)
    return results


def make_step(case: dict) -> "TrainStep":  # noqa: F821
    from qwen3_model.config import Qwen3Config
    from qwen3_model.network.loading import init_model
    from qwen3_model.network.lora import add_lora, init_lora
    from qwen3_model.network.model import Qwen3ForCausalLM
    from qwen3_train.native.choice import training_kernels
    from qwen3_train.settings.adam import AdamSettings
    from qwen3_train.step.step import TrainStep
    from qwen3_train.trainer.trainer import set_up_device

    set_up_device("CPU", graph_mode=True)
    config = Qwen3Config.from_hf(case["model"] | {"model_type": "qwen3", "hidden_act": "silu"})
    model = Qwen3ForCausalLM(config, training_kernels("CPU"))
    init_model(model, 1)
    if "adapters" in case:
        chosen, layers = case["adapters"], range(config.num_layers)
        modules = [f"model.layers.{i}.{name}" for i in layers for name in chosen["modules"]]
        add_lora(model, modules, rank=chosen["rank"], alpha=chosen["alpha"], dropout=0.0)
        init_lora(model, a_init="normal", b_init="zeros", seed=1)
        for name, weight in model.parameters_and_names():
            weight.requires_grad = ".lora_" in name
    adam = case["adam"]
    settings = AdamSettings(**{key: adam[key] for key in ("beta1", "beta2", "eps", "weight_decay")})
    return TrainStep(model, settings, max_norm=adam["max_norm"], num_micro_batches=1)


def matmul_gflops(ms: object, np: object) -> float:
    """Return the best of several products of 2048 rows and columns."""
    size, best_s = 2048, math.inf
    multiply = ms.ops.MatMul(transpose_b=True)
    square = ms.Tensor(np.ones((size, size), np.float32))
    for _ in range(8):
        began_s = time.perf_counter()
        multiply(square, square).asnumpy()
        best_s = min(best_s, time.perf_counter() - began_s)
    return 2 * size**3 / best_s / 1e9


if __name__ == "__main__":
    main()
