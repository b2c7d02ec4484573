"""What lies in a checkpoint: ranks, steps, files, bytes, and a tree of its tensors."""

import re
from collections.abc import Iterator
from pathlib import Path

from qwen3_model.checkpoints.checkpoint_files import rank_steps
from qwen3_model.checkpoints.rows import LazyTensor
from qwen3_model.checkpoints.weight_files import open_checkpoint, rank_parent
from qwen3_model.command.plain_text import counted

LAYER = re.compile(r"(.*\blayers)\.(\d+)\.(.+)")


def describe(source: Path, suffix: str | None) -> Iterator[str]:
    """Yield lines: ranks and steps of a distributed checkpoint, totals by dtype, the tree of tensors.

    Raises:
        Qwen3Error: The source is absent, damaged or incomplete.
    """
    ranks_dir = rank_parent(source)
    if ranks_dir is not None:
        steps = rank_steps(ranks_dir)
        yield counted(len(steps), "rank")
        for step in sorted({step for found in steps.values() for step in found}):
            holders = sum(step in found for found in steps.values())
            yield f"  step {step}: in {holders} of {counted(len(steps), 'rank')}"
    tensors = open_checkpoint(source, suffix=suffix).tensors
    by_dtype: dict[str, list[int]] = {}
    for tensor in tensors.values():
        by_dtype.setdefault(tensor.plan.dtype, []).append(tensor.plan.size_bytes)
    for dtype, sizes in sorted(by_dtype.items()):
        yield f"{dtype}: {counted(len(sizes), 'tensor')}, {sum(sizes):,} bytes"
    yield from tree(tensors)


def tree(tensors: dict[str, LazyTensor]) -> Iterator[str]:
    """Yield a line for each tensor; layers whose tensors are alike share one, such as `layers.0-27`."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for name, tensor in tensors.items():
        what = f"{tensor.plan.dtype} {tensor.plan.shape}"
        match = LAYER.fullmatch(name)
        if match:
            groups.setdefault((match[1], match[3], what), []).append(int(match[2]))
        else:
            groups[name, "", what] = []
    for (prefix, rest, what), layers in groups.items():
        yield f"  {prefix}.{_spans(layers)}.{rest}  {what}" if layers else f"  {prefix}  {what}"


def _spans(numbers: list[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
