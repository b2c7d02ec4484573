"""LoRA adapters: from PEFT's folder or our checkpoints, checked against a base; what they add to a weight.

Source: Hu et al. 2021, section 4.1: W + (alpha / r) B A. PEFT's files: `adapter_config.json` and
`adapter_model.safetensors` with names `base_model.model.<module>.lora_A.weight` of (r, inputs) and
`.lora_B.weight` of (outputs, r); an embedding's are `.lora_embedding_A` (r, rows) and `_B` (width, r). Where
a head is tied to the embedding, PEFT adapts it only with `ensure_weight_tying`, and stores the same adapter
for it once more, transposed.
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_ckpt.diff import largest_difference
from qwen3_ckpt.rows import Bytes, LazyTensor, RowSource, from_file
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import FormatError, WeightError
from qwen3_model.safetensors_file import NUMPY_DTYPES, TensorPlan, from_float32, open_safetensors, to_float32

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
NAME = re.compile(r"(?:base_model\.model\.)?(.+?)\.lora_(embedding_)?(A|B)(?:\.default)?(?:\.weight)?")
# peft adds the base's embedding, whole, to an adapter of it.
BASE_COPY = re.compile(r"(?:base_model\.model\.)?(.+?)\.base_layer\.weight")
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
UNSUPPORTED = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")


@dataclass(frozen=True, slots=True)
class Adapter:
    """The pair of one module, in float32."""

    a: NDArray[np.float32]
    """(r, inputs)."""
    b: NDArray[np.float32]
    """(outputs, r)."""


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """All adapters of a model and their common scale."""

    modules: dict[str, Adapter]
    """By module, such as `model.layers.0.self_attn.q_proj`."""
    alpha: float
    """Scale is alpha / rank."""
    base_copies: dict[str, LazyTensor] = field(default_factory=dict)
    """By module, weights of the base that lie beside its adapter."""

    @property
    def rank(self) -> int:
        """Rank of every adapter."""
        return next(iter(self.modules.values())).a.shape[0]

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def read_peft(folder: Path, alpha: float | None = None) -> AdapterSet:
    """Read a PEFT adapter; `alpha` takes the place of what its config says.

    Raises:
        FormatError: A file is missing or damaged, or asks for something other than plain LoRA.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        stated, kind = float(config["lora_alpha"]), config.get("peft_type", "LORA")
    except FileNotFoundError:
        raise FormatError(f"{folder} has no {CONFIG_FILE}; give a PEFT adapter folder") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is no adapter config: {type(error).__name__} {error}") from None
    used = [key for key in UNSUPPORTED if config.get(key)]
    if kind != "LORA" or used or config.get("bias", "none") != "none":
        raise FormatError(
            f"{path}: only plain LoRA without bias is implemented, not {', '.join(used) or kind}"
        )
    file = open_safetensors(folder / WEIGHTS_FILE)
    adapters = pair(
        {name: from_file(file, name) for name in file.tensors}, stated if alpha is None else alpha
    )
    return without_tied_head(adapters, path) if config.get("ensure_weight_tying") else adapters


def pair(tensors: dict[str, LazyTensor], alpha: float) -> AdapterSet:
    """Put the halves of adapters together.

    Raises:
        FormatError: A tensor is no adapter, a half is missing, or ranks differ.
    """
    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    copies: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if copy := BASE_COPY.fullmatch(name):
            copies[copy[1]] = tensor
            continue
        match = NAME.fullmatch(name)
        if not match:
            raise FormatError(f"{name} is no LoRA tensor")
        halves.setdefault(match[1], {})[match[3]] = read_float32(tensor)
    if not halves:
        raise FormatError("there is no LoRA tensor")
    lone = [module for module, found in halves.items() if len(found) != 2]
    if lone:
        raise FormatError(f"{lone[0]} has only one half of its adapter")
    modules = {module: Adapter(found["A"], found["B"]) for module, found in halves.items()}
    ranks = {(adapter.a.shape[0], adapter.b.shape[1]) for adapter in modules.values()}
    if len(ranks) != 1 or len(set(next(iter(ranks)))) != 1 or 0 in next(iter(ranks)):
        raise FormatError(f"the adapters must have one rank of at least 1, found {sorted(ranks)}")
    return AdapterSet(dict(sorted(modules.items())), alpha, copies)


def without_tied_head(adapters: AdapterSet, path: Path) -> AdapterSet:
    """Return the adapters without the head's, which must be the embedding's once more.

    Raises:
        FormatError: They differ, so the head is not tied after all; `path` says where that is promised.
    """
    modules, copies = dict(adapters.modules), dict(adapters.base_copies)
    head, embedding = modules.pop(HEAD, None), modules.get(EMBEDDING)
    if head is None or embedding is None:
        return adapters
    if not (np.array_equal(head.a, embedding.b.T) and np.array_equal(head.b, embedding.a.T)):
        raise FormatError(f"{path} promises a tied head, but its adapter is another than the embedding's")
    copies.pop(HEAD, None)
    return replace(adapters, modules=modules, base_copies=copies)


def with_peft_embedding(adapters: AdapterSet) -> AdapterSet:
    """Return the adapters with the embedding's in PEFT's form, A (r, rows) and B (width, r).

    A trainer may as well hold it like any matrix of (rows, width), as A (r, width) and B (rows, r), which is
    the same change with the halves transposed. A vocabulary is larger than a hidden size: that tells.
    """
    found = adapters.modules.get(EMBEDDING)
    if found is None or found.a.shape[1] > found.b.shape[0]:
        return adapters
    turned = Adapter(np.ascontiguousarray(found.b.T), np.ascontiguousarray(found.a.T))
    return replace(adapters, modules=adapters.modules | {EMBEDDING: turned})


def check_fits(adapters: AdapterSet, config: Qwen3Config) -> None:
    """Compare every adapter with the weight that it changes.

    Raises:
        WeightError: An adapter is for a module that the model lacks, or of another size.
    """
    shapes = config.weight_shapes()
    problems = []
    for module, adapter in adapters.modules.items():
        shape = shapes.get(f"{module}.weight")
        found = (adapter.b.shape[0], adapter.a.shape[1])
        if module == EMBEDDING:
            found = found[::-1]
        if shape is None:
            problems.append(f"the model has no {module}")
        elif shape != found:
            problems.append(f"{module} is {shape}, its adapter is for {found}")
    if problems:
        raise WeightError(f"the adapter is for another base: {'; '.join(problems[:5])}")


def check_base_copies(adapters: AdapterSet, weights: dict[str, LazyTensor]) -> None:
    """Compare the base's weights that lie in the adapter with those of the base itself.

    Raises:
        WeightError: One differs: it was trained or resized, which adding B A does not reproduce.
    """
    for module, copy in adapters.base_copies.items():
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

    def read(self, start: int, stop: int) -> Bytes:
        """Return a copy."""
        dtype = self._base.plan.dtype
        raw = np.ascontiguousarray(self._base.rows.read(start, stop)).view(NUMPY_DTYPES[dtype])
        fused = to_float32(raw, dtype) + np.float32(self._scale) * (self._left[start:stop] @ self._right)
        return from_float32(fused, dtype).view(np.uint8)

    def ranges(self, start: int, stop: int) -> None:
        """Return None: the bytes change."""


def fuse_adapters(weights: dict[str, LazyTensor], adapters: AdapterSet) -> dict[str, LazyTensor]:
    """Return the weights with their adapters added; those without one are as they were.

    A tied head changes with the embedding, since it is the same weight.
    """
    fused = dict(weights)
    for module, adapter in adapters.modules.items():
        base = weights[f"{module}.weight"]
        rows: RowSource = FusedRows(base, adapter, adapters.scale, is_embedding=module == EMBEDDING)
        fused[base.plan.name] = LazyTensor(base.plan, rows)
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


def peft_config(
    adapters: AdapterSet, config: Qwen3Config | None, base_model: str, *, is_tied: bool
) -> dict[str, object]:
    """Return the contents of `adapter_config.json`."""
    told: dict[str, object] = (
        {"ensure_weight_tying": True} if is_tied and EMBEDDING in adapters.modules else {}
    )
    return told | {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": adapters.rank,
        "target_modules": _targets(adapters, config),
        "task_type": "CAUSAL_LM",
    }


def _targets(adapters: AdapterSet, config: Qwen3Config | None) -> list[str]:
    """Return leaf names where every module of that name has an adapter, else the modules' paths.

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
