"""Write whole tensors as MindSpore's unified files: parts of about 3 GiB and a map of names.

Byte for byte what `unified_safetensors` writes: which tensor goes to which file, and their order in it.
"""

import json
from functools import partial
from pathlib import Path

from qwen3_ckpt.engine.parallel import Count, run_all
from qwen3_ckpt.engine.values import ValueCheck
from qwen3_model.checkpoints.rows import LazyTensor
from qwen3_model.checkpoints.safetensors_file import write_safetensors
from qwen3_model.checkpoints.weight_files import HYPER, NAME_MAP

PART_BYTES = 3 << 30
# The safetensors library's own order of element types.
LIBRARY_ORDER = (
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64",
    "U64",
)  # fmt: skip
UNIFIED_METADATA = {"format": "ms", "remove_redundancy": "False"}
UNIFIED = "unified_safe"


def plan_parts(tensors: dict[str, LazyTensor]) -> list[list[LazyTensor]]:
    """Share tensors out over files of about PART_BYTES, the largest first to the emptiest file."""
    total = sum(tensor.plan.size_bytes for tensor in tensors.values())
    count = max(1, min(-(-total // PART_BYTES), len(tensors)))
    parts: list[list[LazyTensor]] = [[] for _ in range(count)]
    filled = [0] * count
    for tensor in sorted(tensors.values(), key=lambda tensor: -tensor.plan.size_bytes):
        emptiest = filled.index(min(filled))
        parts[emptiest].append(tensor)
        filled[emptiest] += tensor.plan.size_bytes
    return parts


def write_parts(
    folder: Path, tensors: dict[str, LazyTensor], count: Count, workers: int | None = None
) -> list[str]:
    """Write `part0.safetensors`, ... and the map of names into the new folder; return notes on the values."""
    folder.mkdir()
    check = ValueCheck()
    weight_map: dict[str, str] = {}
    jobs = []
    for index, part in enumerate(plan_parts(tensors)):
        name = f"part{index}.safetensors"
        jobs.append(partial(_write, folder / name, sorted(part, key=_order_in_file), UNIFIED_METADATA, check))
        weight_map |= {tensor.plan.name: name for tensor in part}
    run_all(jobs, count, workers)
    total = sum(tensor.plan.size_bytes for tensor in tensors.values())
    name_map = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / NAME_MAP).write_text(json.dumps(name_map, indent=4), encoding="utf-8")
    return check.notes()


def write_run_state(folder: Path, scalars: dict[str, LazyTensor]) -> None:
    """Write `hyper_param.safetensors` into `folder`, when there are scalars."""
    if scalars:
        ordered = sorted(scalars.values(), key=_order_in_file)
        _write(folder / HYPER, ordered, {"format": "ms"}, ValueCheck(), lambda _: None)


def _order_in_file(tensor: LazyTensor) -> tuple[int, str]:
    """Sort as the safetensors library does: by alignment, then by name. So files equal MindSpore's."""
    return -LIBRARY_ORDER.index(tensor.plan.dtype), tensor.plan.name


def _write(
    path: Path, tensors: list[LazyTensor], metadata: dict[str, str], check: ValueCheck, count: Count
) -> None:
    write_safetensors(path, [(tensor.plan, check.pieces(tensor, count)) for tensor in tensors], metadata)
