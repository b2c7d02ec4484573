"""The work behind tools/bench_ckpt: the same shards through cp, MindSpore and qwen3-ckpt, in turn.

A time has two parts: until the command ends, and until the data are on the disk (`sync`). qwen3-ckpt syncs
what it writes before it names it, cp and MindSpore leave that to the kernel; so the sum is what compares.
Memory is the peak of the anonymous pages of all processes of a command, sampled; pages of mapped files belong
to the page cache.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from measures import cpu_seconds_of_children, private_bytes_below

from qwen3_model.checkpoints.safetensors_file import TensorPlan, write_safetensors
from qwen3_model.checkpoints.strategy import TensorLayout, write_strategy
from qwen3_model.config import SIZES, Qwen3Config
from qwen3_model.ranks.layout import placement, shard_slices

ROOT = Path(__file__).resolve().parents[2]
TP, PP = 2, 2
SUFFIX = "1_1"
BLOCK_BYTES = 64 << 20
SAMPLE_S = 0.02
MINDSPORE = """
import sys, mindspore as ms
run, out = sys.argv[1:]
merged = out + ".strategy"
ms.parallel.merge_pipeline_strategys(run + "/strategy", merged)
ms.unified_safetensors(run + "/checkpoint", merged, out, merge_with_redundancy=True, file_suffix="1_1")
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one tool."""

    wall_s: float
    sync_s: float
    cpu_s: float
    """Processor time of all processes, which other work on the machine changes little."""
    anonymous_bytes: int

    @property
    def total_s(self) -> float:
        return self.wall_s + self.sync_s


def main() -> None:
    """Make the shards, run every tool `--repeats` times in alternating order, print a table."""
    arguments = _arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    try:
        _bench(folder, arguments.gigabytes, arguments.repeats, with_mindspore=not arguments.without_mindspore)
    finally:
        shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench_ckpt", description="Merge and convert beside cp.")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the shards  [default: 4]")
    parser.add_argument("--repeats", type=int, default=2, help="runs of every tool  [default: 2]")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "bench_ckpt", help="a new folder on the disk to measure"
    )
    parser.add_argument("--without-mindspore", action="store_true", help="leave MindSpore's merge out")
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} already exists; choose another --folder")
    if arguments.repeats < 1 or arguments.gigabytes < 1:
        parser.error("--repeats and --gigabytes must be at least 1")
    return arguments


def _bench(folder: Path, gigabytes: float, repeats: int, *, with_mindspore: bool) -> None:
    run_dir, out = folder / "run", folder / "out"
    size = make_shards(run_dir, gigabytes)
    print(f"{size / 1e9:.2f} GB of BF16 in tp{TP} x pp{PP} shards, load average {os.getloadavg()[0]:.1f}")
    hf_dir = folder / "hf"
    _measure([*_ckpt("merge"), *_merge_flags(run_dir, hf_dir), "--to", "hf"])
    blocks = size // BLOCK_BYTES + 1
    commands: dict[str, list[str | Path]] = {
        "dd of zeros, the disk's limit": [
            "dd", "if=/dev/zero", f"of={out}", f"bs={BLOCK_BYTES}", f"count={blocks}", "conv=fsync",
        ],
        "cp -r": ["cp", "-r", run_dir / "checkpoint", out],
        "qwen3-ckpt merge": [*_ckpt("merge"), *_merge_flags(run_dir, out)],
        "qwen3-ckpt merge --to hf": [*_ckpt("merge"), *_merge_flags(run_dir, out), "--to", "hf"],
        "qwen3-ckpt convert --to mindformers": [*_ckpt("convert"), hf_dir, out, "--to", "mindformers"],
    }  # fmt: skip
    if with_mindspore:
        commands["ms.unified_safetensors"] = [sys.executable, "-c", MINDSPORE, run_dir, out]
    results: dict[str, list[Measured]] = {name: [] for name in commands}
    for repeat in range(repeats):
        order = list(commands.items())
        for name, command in order[:: -1 if repeat % 2 else 1]:
            _warm(hf_dir if "convert" in name else run_dir)
            results[name].append(_measure(command))
            _clear(out)
    _print_table(results, size)


def _print_table(results: dict[str, list[Measured]], size: int) -> None:
    base = min(run.total_s for run in results["cp -r"])
    head = f"{'best GB/s':>10} {'/ cp':>6} {'CPU s':>6} {'anonymous MB':>13}"
    print(f"{'':36} {'seconds until done (on disk)':>34} {head}")
    for name, runs in results.items():
        times = ", ".join(f"{run.wall_s:.1f} ({run.total_s:.1f})" for run in runs)
        best = min(run.total_s for run in runs)
        memory = max(run.anonymous_bytes for run in runs) / 1e6
        speeds = f"{size / best / 1e9:10.2f} {best / base:6.2f} {min(run.cpu_s for run in runs):6.1f}"
        print(f"{name:36} {times:>34} {speeds} {memory:13.0f}")
    print(f"load average at the end {os.getloadavg()[0]:.1f}")


def make_shards(run_dir: Path, gigabytes: float) -> int:
    """Write the checkpoint and strategy of a model of about this size; return the bytes of its weights."""
    config = _model_of(gigabytes)
    shapes = config.weight_shapes()
    layouts = {name: _layout(name) for name in shapes}
    for stage in range(PP):
        names = [name for name in shapes if _stage_of(name, config) == stage]
        for shard in range(TP):
            rank = stage * TP + shard
            path = run_dir / "checkpoint" / f"rank_{rank}" / f"qwen3_rank_{rank}-{SUFFIX}.safetensors"
            path.parent.mkdir(parents=True)
            plans = []
            for name in names:
                cut = shard_slices(name, shapes[name], tp=TP, shard=shard)
                plans.append(TensorPlan(name, "BF16", tuple(part.stop - part.start for part in cut)))
            write_safetensors(
                path, [(plan, _random(plan.size_bytes, rank)) for plan in plans], {"format": "ms"}
            )
            strategy_path = run_dir / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt"
            write_strategy(strategy_path, stage, {name: layouts[name] for name in names})
    (run_dir / "config.json").write_text(json.dumps(config.to_hf(), indent=2), encoding="utf-8")
    os.sync()
    return sum(2 * int(np.prod(shape)) for shape in shapes.values())


def _model_of(gigabytes: float) -> Qwen3Config:
    """Return the 1.7B model with as many layers as give the size, an even number."""
    shape = SIZES["1.7B"]
    layer_bytes = 2 * sum(int(np.prod(s)) for s in shape.layer_weight_shapes(0).values())
    rest = 2 * shape.vocab_size * shape.hidden_size
    return replace(shape, num_layers=max(2, round((gigabytes * 1e9 - rest) / layer_bytes / PP) * PP))


def _layout(name: str) -> TensorLayout:
    return TensorLayout(
        dev_matrix=(1, TP), tensor_map=tuple(0 if axis == "tp" else -1 for axis in placement(name))
    )


def _stage_of(name: str, config: Qwen3Config) -> int:
    parts = name.split(".")
    if parts[1] == "layers":
        return int(parts[2]) * PP // config.num_layers
    return 0 if "embed" in name else PP - 1


def _random(size: int, seed: int) -> Iterator[bytes]:
    """Yield finite BF16 numbers, so that no check of the values objects."""
    block = np.random.default_rng(seed).integers(0, 0x7F00, BLOCK_BYTES // 2, np.uint16).tobytes()
    for start in range(0, size, BLOCK_BYTES):
        yield block[: min(size - start, BLOCK_BYTES)]


def _ckpt(command: str) -> list[str | Path]:
    return [sys.executable, "-c", "from qwen3_ckpt.cli import main; main()", command]


def _merge_flags(run_dir: Path, out: Path) -> list[str | Path]:
    return [
        "--mindspore-ckpt-dir", run_dir / "checkpoint", "--src-strategy-dirs", run_dir / "strategy",
        "--output-dir", out,
    ]  # fmt: skip


def _warm(folder: Path) -> None:
    """Read the source once, so that every tool finds it in the page cache."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass


def _clear(out: Path) -> None:
    for path in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.sync()


def _measure(command: list[str | Path]) -> Measured:
    started, cpu_before_s = time.monotonic(), cpu_seconds_of_children()
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, private_bytes_below(process.pid))
        time.sleep(SAMPLE_S)
    wall_s, cpu_s = time.monotonic() - started, cpu_seconds_of_children() - cpu_before_s
    if process.returncode:
        sys.exit(f"{command[0]} failed: {process.stderr.read().decode()[-2000:] if process.stderr else ''}")
    os.sync()
    return Measured(wall_s, time.monotonic() - started - wall_s, cpu_s, peak)


if __name__ == "__main__":
    main()
