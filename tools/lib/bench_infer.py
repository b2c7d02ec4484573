"""Run each contestant in a process of its own, in turns for several rounds, and print the best of each."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from measures import peak_bytes

HERE = Path(__file__).resolve()
TORCH_SCRIPT, LLAMA_SCRIPT = HERE.with_name("bench_infer_torch.py"), HERE.with_name("bench_infer_llama.py")
PROMPT_TOKENS, BATCH, PREFILL_TOKENS = 16, 8, 256
COLUMNS = ("batch 1 tok/s", "batch 8 tok/s", "prefill tok/s", "first token s", "peak GB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per second of qwen3-infer beside transformers.")
    parser.add_argument("--size", default="0.6B")
    parser.add_argument("--model-dir", type=Path, help="instead of random weights of --size")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--torch-python", type=Path)
    parser.add_argument("--only", nargs="*", help="names of contestants")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.model_dir, options.new_tokens, options.threads)))
        return
    with tempfile.TemporaryDirectory(prefix="bench_infer.") as scratch:
        model_dir = options.model_dir or make_model(options.size, Path(scratch) / "model")
        compare(options, model_dir)


def compare(options: argparse.Namespace, model_dir: Path) -> None:
    weights_bytes = sum(path.stat().st_size for path in model_dir.glob("*.safetensors"))
    commands = contestants(options, model_dir)
    best: dict[str, dict[str, float]] = {}
    bandwidth = 0.0
    print(f"{options.size}: {weights_bytes / 1e9:.2f} GB of bfloat16 weights, {options.threads} threads, "
          f"{options.new_tokens} new tokens, load {os.getloadavg()[0]:.1f} at the start")  # fmt: skip
    for number in range(options.rounds):
        bandwidth = max(bandwidth, read_speed(options.threads, weights_bytes))
        for name, command in commands.items():
            found = run(name, command, options.threads)
            if found is None:
                continue
            print(f"  round {number + 1}, {name}: {json.dumps(found)}", file=sys.stderr)
            kept = best.setdefault(name, {})
            for key, value in found.items():
                better = min if key in ("first token s", "peak GB") else max
                kept[key] = better(kept.get(key, value), value)
    show(best, weights_bytes, bandwidth)


def show(best: dict[str, dict[str, float]], weights_bytes: int, bandwidth: float) -> None:
    print(f"memory reads at {bandwidth / 1e9:.1f} GB/s")
    print(f"{'':24}" + "".join(f"{column:>16}" for column in COLUMNS) + f"{'of bandwidth':>16}")
    for name, values in best.items():
        # float32 reads each weight as four bytes instead of two.
        bytes_read = weights_bytes * (2 if "float32" in name else 1)
        share = values["batch 1 tok/s"] * bytes_read / bandwidth
        cells = "".join(f"{values.get(column, float('nan')):16.1f}" for column in COLUMNS)
        print(f"{name:24}{cells}{share:16.0%}")
    ours, theirs = best.get("qwen3-infer native"), best.get("transformers bfloat16")
    if ours and theirs:
        for name, values in best.items():
            if name.startswith("qwen3-infer native"):
                ratios = ", ".join(
                    f"{column} {values[column] / theirs[column]:.2f}" for column in COLUMNS[:3]
                )
                print(f"{name} / transformers bfloat16: {ratios}")


def contestants(options: argparse.Namespace, model_dir: Path) -> dict[str, list[str]]:
    found = {}
    tail = [
        "--model-dir",
        str(model_dir),
        "--new-tokens",
        str(options.new_tokens),
        "--threads",
        str(options.threads),
    ]
    for kernels in ("native", "native-bf16", "portable"):
        name = f"qwen3-infer {kernels}" + (" float32" if kernels == "portable" else "")
        found[name] = [sys.executable, str(HERE), "--child", kernels, *tail]
    if options.torch_python and options.torch_python.exists():
        for dtype in ("float32", "bfloat16"):
            found[f"transformers {dtype}"] = [str(options.torch_python), str(TORCH_SCRIPT), dtype, *tail]
    else:
        print("transformers is left out: tools/parity makes its environment", file=sys.stderr)
    if os.environ.get("LLAMA_BENCH"):
        found["llama.cpp"] = [
            os.environ["LLAMA_BENCH"], "-m", os.environ["LLAMA_MODEL"], "-t", str(options.threads),
            "-p", str(PREFILL_TOKENS), "-n", str(options.new_tokens), "-o", "json",
        ]  # fmt: skip
    if os.environ.get("LLAMA_PYTHON"):
        python, model = os.environ["LLAMA_PYTHON"], os.environ["LLAMA_MODEL"]
        found["llama-cpp-python"] = [python, str(LLAMA_SCRIPT), "--model-dir", model, *tail[2:]]
    return {name: command for name, command in found.items() if not options.only or name in options.only}


def run(name: str, command: list[str], threads: int) -> dict[str, float] | None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "GLOG_v": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"  {name} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    if name != "llama.cpp":
        return json.loads(done.stdout.splitlines()[-1])
    tests = json.loads(done.stdout)
    decode = next(test for test in tests if test["n_gen"])
    prefill = next(test for test in tests if not test["n_gen"])
    return {"batch 1 tok/s": decode["avg_ts"], "prefill tok/s": prefill["avg_ts"]}


def make_model(size: str, directory: Path) -> Path:
    subprocess.run([sys.executable, "-m", "qwen3_model", "init", size, str(directory), "--quiet"], check=True)
    return directory


def measure(kernels: str, model_dir: Path, new_tokens: int, threads: int) -> dict[str, float]:
    started_s = time.perf_counter()
    from qwen3_infer.device import Device
    from qwen3_infer.processes.local import open_local

    cache_dir = Path.home() / ".cache/qwen3-infer"
    device = Device(target="CPU", kernels=kernels, num_threads=threads, cache_dir=cache_dir)
    model = open_local(model_dir, device, quiet=True, note=print)
    engine = model.engine(1, PREFILL_TOKENS + new_tokens)
    ids = [int(number) for number in np.random.default_rng(0).integers(0, 1000, PREFILL_TOKENS)]
    prefill(engine, ids[:PROMPT_TOKENS])
    found = {
        "first token s": time.perf_counter() - started_s,
        "batch 1 tok/s": decode_speed(engine, new_tokens),
    }
    prefill(engine, ids)
    prefill_s = min(timed(lambda: prefill(engine, ids)) for _ in range(3))
    found["prefill tok/s"] = PREFILL_TOKENS / prefill_s
    batched = model.engine(BATCH, PROMPT_TOKENS + new_tokens)
    found["batch 8 tok/s"] = decode_speed(batched, new_tokens)
    found["peak GB"] = peak_bytes() / 1e9
    return {key: round(value, 2) for key, value in found.items()}


def prefill(engine: object, ids: list[int]) -> None:
    from qwen3_infer.steps.pieces import cut

    for start, length in cut(len(ids)):
        engine.read(0, ids[start : start + length], start, length)


def decode_speed(engine: object, new_tokens: int) -> float:
    """Return tokens per second over all rows, greedy, the first step (compilation) left out."""
    rows = engine.num_rows
    starts = np.arange(rows, dtype=np.int32) * (engine.num_tokens // rows)
    tokens = np.zeros(rows, np.int32)
    started_s = 0.0
    for step in range(new_tokens + 1):
        if step == 1:
            started_s = time.perf_counter()
        positions = np.full(rows, PROMPT_TOKENS + step - (step == new_tokens), np.int32)
        rows_V = engine.decode(starts, tokens, positions)
        tokens = np.array([int(logits_V.argmax()) for logits_V in rows_V], np.int32)
    return rows * new_tokens / (time.perf_counter() - started_s)


def timed(work: object) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def read_speed(threads: int, size_bytes: int) -> float:
    """Return bytes per second that the threads read together from an array as large as the weights.

    A smaller one would partly lie in a large processor's last cache.
    """
    parts = np.array_split(np.ones(size_bytes // 8, np.uint64), threads)
    best_s = float("inf")
    for _ in range(3):
        workers = [threading.Thread(target=np.add.reduce, args=(part,)) for part in parts]
        started_s = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best_s = min(best_s, time.perf_counter() - started_s)
    return size_bytes / best_s


if __name__ == "__main__":
    main()
