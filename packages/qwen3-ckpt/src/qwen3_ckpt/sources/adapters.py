"""What LoRA adapters add to a base, and how PEFT's files say it.

`qwen3_model.checkpoints.adapters` reads them.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qwen3_ckpt.sources.difference import largest_difference
from qwen3_model.checkpoints.adapters import EMBEDDING, HEAD, Adapter, AdapterSet
from qwen3_model.checkpoints.rows import Bytes, LazyTensor, RowSource, from_file
from qwen3_model.checkpoints.safetensors_file import (
    NUMPY_DTYPES,
    SafetensorsFile,
    TensorPlan,
    from_float32,
    to_float32,
)
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import WeightError

PEFT_PREFIX = "base_model.model."


def check_base_copies(adapters: AdapterSet, weights: dict[str, LazyTensor]) -> None:
    """Compare the base's weights that lie in the adapter with those of the base itself.

    Raises:
        WeightError: One differs: it was trained or resized, which adding B A does not reproduce.
    """
    for module, (file, name) in adapters.base_copies.items():
        copy = from_file(file, name)
        base = weights.get(f"{module}.weight")
        if base is None or base.plan.shape != copy.plan.shape or largest_difference(base, copy)[0]:
            raise WeightError(
                f"the adapter holds its own {module}.weight, which differs from the base's; "
                "fuse it into the base that it was trained on"
            )


class FusedRows:
    """Rows of a weight with its adapter added, in float32 and rounded once to the weight's dtype."""

    def __init__(self, base: LazyTensor, adapter: Adapter, scale: float, *, is_embedding: bool) -> None:
        self._base, self._scale = base, scale
        # Row i of the change is left[i] @ right.
        self._left, self._right = (adapter.a.T, adapter.b.T) if is_embedding else (adapter.b, adapter.a)
        self.num_rows, self.row_bytes = base.rows.num_rows, base.rows.row_bytes

    def read(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Bytes:
        """Return a copy."""
        dtype = self._base.plan.dtype
        raw = np.ascontiguousarray(self._base.rows.read(start, stop)).view(NUMPY_DTYPES[dtype])
        fused = to_float32(raw, dtype) + np.float32(self._scale) * (self._left[start:stop] @ self._right)
        return from_float32(fused, dtype).view(np.uint8)[:, first:last]

    def ranges(self, start: int, stop: int) -> None:
        """Return None: the bytes change."""

    def files(self) -> Iterator[tuple[SafetensorsFile, str]]:
        """Yield the base's files."""
        return self._base.rows.files()


def fuse_adapters(weights: dict[str, LazyTensor], adapters: AdapterSet) -> dict[str, LazyTensor]:
    """Return the weights with their adapters added, or replaced by those of modules_to_save.

    A tied head changes with the embedding, since it is the same weight.
    """
    fused = dict(weights)
    for module, adapter in adapters.modules.items():
        base = weights[f"{module}.weight"]
        rows: RowSource = FusedRows(base, adapter, adapters.scale, is_embedding=module == EMBEDDING)
        fused[base.plan.name] = LazyTensor(base.plan, rows)
    for module, (file, name) in adapters.saved.items():
        fused[f"{module}.weight"] = from_file(file, name).renamed(f"{module}.weight")
    return fused


def peft_tensors(
    adapters: AdapterSet, *, is_tied: bool
) -> list[tuple[TensorPlan, list[NDArray[np.float32]]]]:
    """Return the tensors of `adapter_model.safetensors`, sorted by name."""
    entries, modules = [], dict(adapters.modules)
    if is_tied and EMBEDDING in modules:
        embedding = modules[EMBEDDING]
        turned = (np.ascontiguousarray(half.T) for half in (embedding.b, embedding.a))
        modules[HEAD] = Adapter(*turned)
    for module, adapter in modules.items():
        is_embedding = module == EMBEDDING
        for half, values in (("A", adapter.a), ("B", adapter.b)):
            leaf = f"lora_embedding_{half}" if is_embedding else f"lora_{half}.weight"
            entries.append((TensorPlan(f"{PEFT_PREFIX}{module}.{leaf}", "F32", values.shape), [values]))
    return sorted(entries, key=lambda entry: entry[0].name)


def peft_targets(adapters: AdapterSet, config: Qwen3Config | None) -> list[str]:
    """Return `target_modules`: leaf names where each module of that name has an adapter, else paths.

    PEFT gives an adapter to each module that a name fits, whether the file has one or not.
    """
    leaves = {module.rpartition(".")[2] for module in adapters.modules}
    everywhere = {name.removesuffix(".weight") for name in config.weight_shapes()} if config else set()
    fitting = {module for module in everywhere if module.rpartition(".")[2] in leaves}
    return sorted(leaves if fitting == adapters.modules.keys() else adapters.modules)


def read_float32(tensor: LazyTensor) -> NDArray[np.float32]:
    """Read a small float tensor whole."""
    raw = np.ascontiguousarray(tensor.rows.read(0, tensor.rows.num_rows)).view(
        NUMPY_DTYPES[tensor.plan.dtype]
    )
    return to_float32(raw, tensor.plan.dtype).reshape(tensor.plan.shape)
