"""The work behind tools/bench_scale: series of growing size, each with the power of the size that fits best.

Times are CPU seconds of this process, which other work on the machine changes little. Files are sparse or
tiny: what grows here is their number, not their bytes.
"""

import argparse
import dataclasses
import json
import math
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from qwen3_model.checkpoints import source_file
from qwen3_model.checkpoints.checkpoint_files import choose_rank_files, files_of_step
from qwen3_model.checkpoints.rank_tensors import open_rank_tensors
from qwen3_model.checkpoints.safetensors_file import TensorPlan, encode_header
from qwen3_model.checkpoints.strategy import encode_strategy
from qwen3_model.config import SIZES
from qwen3_model.ranks.layout import Layout
from qwen3_train.checkpoints.own_slices import open_own_slices
from qwen3_train.checkpoints.shared_writing import checkpoint_bytes, shares_of_stage
from qwen3_train.checkpoints.source import LateFiles, ResumeSource
from qwen3_train.checkpoints.strategy_files import stage_tensors
from qwen3_train.data.blend_order import weighted_order, weighted_pieces
from qwen3_train.data.gpt_index import fill_sample_index
from qwen3_train.data.index_cache import cached

TP, PP = 8, 4
MODEL = dataclasses.replace(SIZES["32B"], num_layers=16)
"""The 32B's widths with 4 layers a stage: a rank's file has 150 tensors and not 530."""
FILE_DOCUMENTS = 156_250_000
"""Documents of each of 64 files of 1e10 documents together, which are 1e13 tokens at 1,000 each."""
HOW = {"offset": (), "shares_moments": True, "lora": None}
Row = tuple[str, str, Sequence[int], Sequence[float]]


def main() -> None:
    """Measure each series and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        prog="tools/bench_scale", description="How costs grow with ranks and data."
    )
    parser.add_argument("--ranks", type=int, default=128, help="largest number of ranks  [default: 128]")
    arguments = parser.parse_args()
    if arguments.ranks < 2 * TP * PP:
        parser.error(f"--ranks {arguments.ranks} must be at least {2 * TP * PP}")
    print("| What | Unit | Measured | Law | At size |\n|---|---|---|---|---|")
    for row in (*_of_ranks(arguments.ranks), *_of_data()):
        print(_line(*row), flush=True)


def power(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the power of the size that fits the costs best, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-9)), 1)[0])


def of_power(sizes: Sequence[float], costs: Sequence[float], target: float) -> tuple[str, float]:
    """Return the law that is the best power of the size, and the cost at another size."""
    law = power(sizes, costs)
    return f"n^{law:.2f}", costs[-1] * (target / sizes[-1]) ** law


def straight(sizes: Sequence[float], costs: Sequence[float], target: float) -> tuple[str, float]:
    """Return the best straight line, where a part does not grow, and the cost at another size."""
    slope, rest = np.polyfit(sizes, costs, 1)
    return f"{rest:.3g} + {slope:.3g} n", float(rest + slope * target)


def _line(
    what: str,
    unit: str,
    sizes: Sequence[float],
    costs: Sequence[float],
    target: float = 1024,
    fit: Callable[[Sequence[float], Sequence[float], float], tuple[str, float]] = of_power,
) -> str:
    law, at_size = fit(sizes, costs, target)
    measured = ", ".join(f"{size:,}: {cost:,.3g}" for size, cost in zip(sizes, costs, strict=True))
    return f"| {what} | {unit} | {measured} | {law} | {target:,.0f}: {at_size:,.3g} |"


def _of_ranks(most: int) -> Iterable[tuple[object, ...]]:
    sizes = [TP * PP * 2**power for power in range(10) if TP * PP * 2**power <= most]
    whole_s, whole_opens, own_s, own_opens, shared_opens, share_s, total = ([] for _ in range(7))
    for num_ranks in sizes:
        layout = Layout(dp=num_ranks // TP // PP, tp=TP, pp=PP)
        share_s.append(_cpu_s(lambda layout=layout: _shares(layout)))
        total.append(checkpoint_bytes(layout, SIZES["32B"], **HOW, shares_writing=True) / 1e12)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _write_run(folder, layout, shared=False)
            spent, opens = _counted(
                lambda folder=folder: open_rank_tensors(choose_rank_files(folder, None, None)[0])
            )
            whole_s.append(spent)
            whole_opens.append(opens)
            spent, opens = _counted(lambda folder=folder, layout=layout: _own(folder, layout))
            own_s.append(spent)
            own_opens.append(opens)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _write_run(folder, layout, shared=True)
            shared_opens.append(_counted(lambda folder=folder, layout=layout: _own(folder, layout))[1])
    yield "Launcher looks at every rank's file", "CPU s", sizes, whole_s
    yield "files that it opens", "files", sizes, whole_opens
    yield "A rank goes on in its layout", "CPU s", sizes, own_s
    yield "files that it opens", "files", sizes, own_opens
    yield "files that it opens where writing was shared", "files", sizes, shared_opens
    yield "A rank finds what it writes", "CPU s", sizes, share_s
    yield "Bytes of a checkpoint of 32B (computed)", "TB", sizes, total


def _of_data() -> Iterable[tuple[object, ...]]:
    samples = [5_000_000, 10_000_000, 20_000_000, 40_000_000]
    documents = [1_000_000, 2_000_000, 4_000_000, 8_000_000]
    rng = np.random.default_rng(0)
    index_s, index_gb = [], []
    for count in documents:
        lengths = rng.integers(1, 2000, count, dtype=np.int32)
        index_s.append(_cpu_s(lambda lengths=lengths: _index(lengths)))
        tracemalloc.start()
        _index(lengths)
        index_gb.append(tracemalloc.get_traced_memory()[1] / 1e9)
        tracemalloc.stop()
    yield "Sample index of a file", "CPU s", documents, index_s, FILE_DOCUMENTS
    yield "memory while it is made", "GB", documents, index_gb, FILE_DOCUMENTS, straight
    for files in (2, 8, 64):
        weights = (rng.random(files) + 0.01).tolist()
        weighted_order(weights, samples[0])  # compiles
        spent = [_cpu_s(lambda n=n, weights=weights: _order(weights, n)) for n in samples]
        yield f"Order of a blend of {files} files", "CPU s", samples, spent, 2.44e9


def _order(weights: list[float], num_samples: int) -> None:
    for _ in weighted_pieces(weights, num_samples):
        pass


def _index(lengths: np.ndarray) -> None:
    """Make the index of a file of documents, one pass over them, in a folder."""
    with tempfile.TemporaryDirectory() as name:
        cached(
            Path(name), "", lambda room: fill_sample_index(room, lengths, range(len(lengths)), 4096, None, 1)
        )


def _shares(layout: Layout) -> None:
    shares_of_stage(stage_tensors(layout, SIZES["32B"], 0, **HOW))


def _own(folder: Path, layout: Layout) -> None:
    source = ResumeSource(
        files=LateFiles(files_of_step(folder, "qwen3_rank_0-1_1")), is_own=True, is_checked=True
    )
    settings = SimpleNamespace(layout=layout, model=MODEL, offset=(), parallel_optimizer=True, lora=None)
    if open_own_slices(source, settings, layout.num_ranks - 1) is None:  # type: ignore[arg-type]
        raise SystemExit("the rank does not find its slices")


def _cpu_s(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _counted(call: Callable[[], object]) -> tuple[float, int]:
    """Return CPU seconds and how many safetensors files were opened."""
    opens, real = [0], source_file.os.open

    class Counting:
        def __getattr__(self, name: str) -> object:
            if name == "open":
                opens[0] += 1
            return getattr(real_os, name)

    real_os = source_file.os
    source_file.os = Counting()  # type: ignore[assignment]
    try:
        return _cpu_s(call), opens[0]
    finally:
        source_file.os = real_os
        assert source_file.os.open is real


def _write_run(folder: Path, layout: Layout, *, shared: bool) -> None:
    """Write headers and sparse data of every rank of a run, and its strategies."""
    devices = layout.dp * layout.tp
    (folder / "strategy").mkdir()
    for stage in range(layout.pp):
        tensors = stage_tensors(layout, MODEL, stage, **HOW)
        shares = shares_of_stage(tensors) if shared else [list(tensors)] * devices
        body = encode_strategy(stage, {name: (stage, cut) for name, (cut, _) in tensors.items()})
        for local, names in enumerate(shares):
            rank = stage * devices + local
            plans = [TensorPlan(name, "F32", _shape(name, tensors[name])) for name in names]
            plans.append(TensorPlan("global_step", "I32", (1,)))
            header = encode_header(plans, {"format": "ms", "qwen3_train": json.dumps({"course": "1"})})
            path = folder / "checkpoint" / f"rank_{rank}" / f"qwen3_rank_{rank}-1_1.safetensors"
            path.parent.mkdir(parents=True)
            with path.open("wb") as file:
                file.write(header)
                file.truncate(len(header) + sum(plan.size_bytes for plan in plans))
            (folder / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(body)


def _shape(name: str, held: tuple[object, int]) -> tuple[int, ...]:
    cut, size = held
    bare = name.removeprefix("adam_m.").removeprefix("adam_v.")
    whole = MODEL.weight_shapes()[bare]
    shape = [length // parts for length, parts in zip(whole, cut.splits(), strict=True)]  # type: ignore[attr-defined]
    shape[0] //= cut.optimizer_pieces()  # type: ignore[attr-defined]
    assert math.prod(shape) == size
    return tuple(shape)


if __name__ == "__main__":
    main()
