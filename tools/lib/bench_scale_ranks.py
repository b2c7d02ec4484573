"""What grows with the ranks of a run: its checkpoints, their reading, their merging."""

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

from bench_scale_series import Series, cpu_s, one_thread, open_files_limited
from measures import cpu_seconds_of_children

from qwen3_model.checkpoints import source_file
from qwen3_model.checkpoints.checkpoint_files import choose_rank_files, files_of_step
from qwen3_model.checkpoints.fresh_weights import fresh_weight
from qwen3_model.checkpoints.rank_tensors import open_rank_tensors
from qwen3_model.checkpoints.safetensors_file import TensorPlan, encode_header
from qwen3_model.checkpoints.strategy import encode_strategy
from qwen3_model.config import SIZES, Qwen3Config
from qwen3_model.ranks.layout import Layout, shard_slices
from qwen3_train.checkpoints.own_slices import open_own_slices
from qwen3_train.checkpoints.shared_writing import checkpoint_bytes, shares_of_stage
from qwen3_train.checkpoints.source import LateFiles, ResumeSource
from qwen3_train.checkpoints.strategy_files import stage_tensors

TP, PP = 8, 4
MODEL = dataclasses.replace(SIZES["32B"], num_layers=16)
"""The 32B's widths with 4 layers a stage: a rank's file has 150 tensors and not 530."""
SMALL = dataclasses.replace(
    SIZES["32B"], num_layers=16, hidden_size=256, intermediate_size=512, num_heads=8, num_kv_heads=8,
    head_dim=32, vocab_size=2048,
)  # fmt: skip
"""As many tensors, small enough to be read and written whole."""
HOW = {"offset": (), "shares_moments": True, "lora": None}
NAME = "qwen3_rank_0-1_1"


def series_of_ranks(most: int) -> list[int]:
    """Return 32, 64, ... up to `most` ranks."""
    return [TP * PP * 2**power for power in range(10) if TP * PP * 2**power <= most]


def resume(most: int) -> Iterator[Series]:
    """Going on from a checkpoint: what the launcher looks at, and what a rank opens."""
    sizes = series_of_ranks(most)
    whole_s, whole_opens, own_s, own_opens, shared_opens = ([] for _ in range(5))
    for num_ranks in sizes:
        layout = _layout(num_ranks)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_run(folder, layout, MODEL, shared=False)
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
            write_run(folder, layout, MODEL, shared=True)
            shared_opens.append(_counted(lambda folder=folder, layout=layout: _own(folder, layout))[1])
    yield _row("The launcher looks at every rank's file", "CPU s", sizes, whole_s)
    yield _row("files that it opens", "files", sizes, whole_opens)
    yield _row("A rank goes on in its layout", "CPU s", sizes, own_s)
    yield _row("files that it opens", "files", sizes, own_opens)
    yield _row("files that it opens where replicas shared the writing", "files", sizes, shared_opens)


def checkpoint(most: int) -> Iterator[Series]:
    """Writing a checkpoint: who writes what, and how much it is."""
    sizes = series_of_ranks(most)
    spent = [cpu_s(lambda size=size: _shares(_layout(size))) for size in sizes]
    total = [
        checkpoint_bytes(_layout(size), SIZES["32B"], **HOW, shares_writing=True) / 1e12 for size in sizes
    ]
    yield _row("A rank finds what it writes", "CPU s", sizes, spent)
    yield _row("Bytes of a checkpoint of 32B (computed)", "TB", sizes, total)


def merge(most: int) -> Iterator[Series]:
    """`qwen3-ckpt merge` of every rank's file, with 1,024 open files allowed."""
    sizes, plan_s, whole_s = series_of_ranks(most), [], []
    for num_ranks in sizes:
        with tempfile.TemporaryDirectory() as name:
            write_run(Path(name), _layout(num_ranks), SMALL, shared=True)
            plan_s.append(_merge_s(Path(name), "--dry-run"))
            whole_s.append(_merge_s(Path(name)))
    yield _row("`qwen3-ckpt merge --dry-run`, at most 1,024 open files", "CPU s", sizes, plan_s)
    yield _row("the same without `--dry-run`, of a small model", "CPU s", sizes, whole_s)


def fresh() -> Iterator[Series]:
    """Random weights of a layer: what one of the shards makes."""
    model, sizes = SIZES["8B"], [1, 2, 4, 8]
    spent = [cpu_s(lambda tp=tp: _make_shard(model, tp)) for tp in sizes]
    yield Series(
        what="Random weights of a layer of 8B (193 million numbers), by shards",
        unit="CPU s",
        sizes=sizes,
        costs=spent,
        target=8,
    )


def _make_shard(model: Qwen3Config, tp: int) -> None:
    for name, shape in model.layer_weight_shapes(0).items():
        fresh_weight(model, name, 1, shard_slices(name, shape, tp=tp, shard=tp - 1))


def _row(what: str, unit: str, sizes: list[int], costs: list[float]) -> Series:
    return Series(what=what, unit=unit, sizes=sizes, costs=costs, target=1024)


def _layout(num_ranks: int) -> Layout:
    return Layout(dp=num_ranks // TP // PP, tp=TP, pp=PP)


def _merge_s(folder: Path, *flags: str) -> float:
    """Return the CPU seconds of a merge."""
    words = [
        Path(sys.executable).with_name("qwen3-ckpt"),
        "merge",
        "--mindspore-ckpt-dir",
        folder / "checkpoint",
    ]
    words += [
        "--src-strategy-dirs",
        folder / "strategy",
        "--output-dir",
        folder / "merged",
        "--quiet",
        *flags,
    ]
    before = cpu_seconds_of_children()
    with open_files_limited():
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=one_thread())
    return cpu_seconds_of_children() - before


def _shares(layout: Layout) -> None:
    shares_of_stage(stage_tensors(layout, SIZES["32B"], 0, **HOW))


def _own(folder: Path, layout: Layout) -> None:
    source = ResumeSource(files=LateFiles(files_of_step(folder, NAME)), is_own=True, is_checked=True)
    settings = SimpleNamespace(layout=layout, model=MODEL, offset=(), parallel_optimizer=True, lora=None)
    if open_own_slices(source, settings, layout.num_ranks - 1) is None:
        raise SystemExit("the rank does not find its slices")


def _counted(call: Callable[[], object]) -> tuple[float, int]:
    """Return CPU seconds and how many safetensors files were opened."""
    opens, real_os = [0], source_file.os

    class Counting:
        def __getattr__(self, name: str) -> object:
            if name == "open":
                opens[0] += 1
            return getattr(real_os, name)

    source_file.os = Counting()
    try:
        return cpu_s(call), opens[0]
    finally:
        source_file.os = real_os


def write_run(folder: Path, layout: Layout, model: Qwen3Config, *, shared: bool) -> None:
    """Write headers and sparse data of every rank of a run, and its strategies."""
    devices = layout.dp * layout.tp
    (folder / "strategy").mkdir()
    for stage in range(layout.pp):
        tensors = stage_tensors(layout, model, stage, **HOW)
        shares = shares_of_stage(tensors) if shared else [list(tensors)] * devices
        body = encode_strategy(stage, {name: (stage, cut) for name, (cut, _) in tensors.items()})
        for local, names in enumerate(shares):
            rank = stage * devices + local
            plans = [TensorPlan(name, "F32", _shape(model, name, tensors[name])) for name in names]
            plans.append(TensorPlan("global_step", "I32", (1,)))
            header = encode_header(plans, {"format": "ms", "qwen3_train": json.dumps({"course": "1"})})
            path = folder / "checkpoint" / f"rank_{rank}" / f"qwen3_rank_{rank}-1_1.safetensors"
            path.parent.mkdir(parents=True)
            with path.open("wb") as file:
                file.write(header)
                file.truncate(len(header) + sum(plan.size_bytes for plan in plans))
            (folder / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt").write_bytes(body)


def _shape(model: Qwen3Config, name: str, held: tuple[object, int]) -> tuple[int, ...]:
    cut, size = held
    bare = name.removeprefix("adam_m.").removeprefix("adam_v.")
    whole = model.weight_shapes()[bare]
    shape = [length // parts for length, parts in zip(whole, cut.splits(), strict=True)]
    shape[0] //= cut.optimizer_pieces()
    assert math.prod(shape) == size
    return tuple(shape)
