"""The work behind tools/demo: the walkthrough's commands one after the other, and a look at what came out."""

import argparse
import json
import math
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from qwen3_model.text.tokens import open_tokens

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tools/demo_data"
BATCH = 8  # as in configs/qwen3/demo.yaml
PROMPTS = ("My lord, I will", "The king said to his son,", "O, what a")


def main() -> None:
    """Run every step, then print where everything lies and how good it is."""
    arguments = _arguments()
    out = arguments.output or _next_folder(ROOT / "demo")
    if out.exists():
        sys.exit(f"tools/demo: {out} already exists; choose another --output")
    out.mkdir(parents=True)
    started = time.monotonic()
    prefix = _make_tokens(out)
    run_dir = _train(out, prefix, arguments.steps)
    model_dir = _make_model(out, run_dir)
    _step("Loss curve", "qwen3-train", "report", run_dir)
    generated = _generate(out, model_dir)
    _summary(out, prefix, run_dir, generated)
    _check(run_dir, prefix, arguments.steps)
    print(f"\ntools/demo took {time.monotonic() - started:.0f} s after the set-up.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/demo", description="From text to generated text on a CPU.")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="a new folder  [default: demo/1, demo/2, ...]"
    )
    parser.add_argument("--steps", type=int, default=300, help="training steps  [default: 300]")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps {arguments.steps} must be at least 1")
    return arguments


def _next_folder(parent: Path) -> Path:
    taken = [int(path.name) for path in parent.glob("*") if path.name.isdigit()]
    return parent / str(max(taken, default=0) + 1)


def _make_tokens(out: Path) -> Path:
    """Turn Shakespeare's speeches into token files; return their prefix."""
    flags = ["--output-prefix", out / "tokens/plays", "--tokenizer-type", "HuggingFaceTokenizer"]
    flags += ["--tokenizer-dir", DATA / "tokenizer", "--append-eod", "--json-keys", "text", "--workers", "2"]
    _step("Text to token files", "qwen3-data", "preprocess", "--input", DATA / "shakespeare.jsonl", *flags)
    prefix = out / "tokens/plays_text_document"
    _step("A look at them", "qwen3-data", "inspect", prefix)
    return prefix


def _train(out: Path, prefix: Path, steps: int) -> Path:
    run_dir = out / "run"
    flags = ["--output_dir", run_dir, "--pretrained_model_dir", DATA / "tokenizer"]
    flags += ["--train_dataset.data_loader.config.data_path", prefix]
    flags += ["--train_dataset.data_loader.sizes", f"[{steps * BATCH}, 0, 0]"]
    config = ROOT / "configs/qwen3/demo.yaml"
    _step("Training from scratch", "qwen3-train", "launch", "--config", config, *flags)
    return run_dir


def _make_model(out: Path, run_dir: Path) -> Path:
    """Merge the run's last checkpoint and convert it to a Hugging Face folder; return that."""
    merged, model_dir = out / "merged", out / "model"
    flags = ["--mindspore-ckpt-dir", run_dir / "checkpoint", "--src-strategy-dirs", run_dir / "strategy"]
    flags += ["--output-dir", merged, "--filter-out-param-prefix", "adam_"]
    _step("Merge", "qwen3-ckpt", "merge", *flags)
    _step("Convert to a Hugging Face folder", "qwen3-ckpt", "convert", merged, model_dir, "--hf-dir", run_dir)
    _step("Verify it", "qwen3-model", "verify", model_dir)
    return model_dir


def _generate(out: Path, model_dir: Path) -> Path:
    prompts, result = out / "prompts.txt", out / "text_generation_result.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    flags = [
        "--pretrained-model-dir",
        model_dir,
        "--input",
        prompts,
        "--predict-batch-size",
        len(PROMPTS),
    ]
    flags += ["--max-new-tokens", 60, "--do-sample", "--temperature", 0.5, "--top-k", 40]
    flags += ["--repetition-penalty", 1.05, "--seed", 1]
    _step("Generate", "qwen3-infer", "generate", *flags, "--no-stream", "--save-file", result)
    return result


def _step(title: str, program: str, *arguments: object) -> None:
    """Print a command, run it, and stop the demo when it fails."""
    words = [str(argument) for argument in arguments]
    shown = [str(Path(word).relative_to(ROOT)) if word.startswith(f"{ROOT}/") else word for word in words]
    print(f"\n== {title}\n$ {shlex.join([program, *shown])}", flush=True)
    started = time.monotonic()
    code = subprocess.run([Path(sys.executable).with_name(program), *words], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(f"tools/demo: {program} {words[0]} ended with exit code {code}; its message is above")
    print(f"[{time.monotonic() - started:.1f} s]", flush=True)


def unigram_entropy(prefix: Path) -> float:
    """Return the entropy of the token frequencies in nats: the least loss of a model that ignores context."""
    tokens = open_tokens(prefix)
    counts = np.zeros(0, np.int64)
    for number, length in enumerate(tokens.sequence_lengths):
        more = np.bincount(tokens.sequence(number, 0, int(length)), minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def read_metrics(run_dir: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the lines of steps and those of evaluations."""
    lines = [
        json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [line for line in lines if "loss" in line], [line for line in lines if "eval_loss" in line]


def _summary(out: Path, prefix: Path, run_dir: Path, generated: Path) -> None:
    steps, evaluations = read_metrics(run_dir)
    entropy = unigram_entropy(prefix)
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    before, after = evaluations[0]["eval_perplexity"], evaluations[-1]["eval_perplexity"]
    print("\n== What came out")
    rows = {
        "text": DATA / "shakespeare.jsonl",
        "token files": f"{prefix}.bin, .idx, .json",
        "run": f"{run_dir} (checkpoint/, strategy/, msrun_log/, metrics.jsonl, run.yaml)",
        "merged": out / "merged",
        "Hugging Face": out / "model",
        "loss curve": run_dir / "loss.png",
        "generated": generated,
        "loss": f"{steps[0]['loss']:.3f} at step 1 -> {steps[-1]['loss']:.3f} at step {len(steps)}",
        "": f"the text's unigram entropy is {entropy:.3f}, a uniform guess has {math.log(4096):.3f}",
        "held-out perplexity": f"{before:.0f} before -> {after:.1f} after (unigram: {math.exp(entropy):.0f})",
        "peak memory": f"{peak_kib * 1024 / 1e9:.1f} GB (largest process)",
    }
    for name, value in rows.items():
        print(f"{name:20} {value}")


def _check(run_dir: Path, prefix: Path, steps: int) -> None:
    """Exit with 1 when a whole demo has not learned more than the frequencies of the tokens."""
    done, evaluations = read_metrics(run_dir)
    entropy, last = unigram_entropy(prefix), sum(line["loss"] for line in done[-20:]) / len(done[-20:])
    if steps >= 300 and (last > entropy - 0.5 or evaluations[-1]["eval_loss"] > entropy - 0.5):
        sys.exit(
            f"tools/demo: the loss should be below the unigram entropy ({entropy:.3f}) by 0.5, and is not"
        )


if __name__ == "__main__":
    main()
