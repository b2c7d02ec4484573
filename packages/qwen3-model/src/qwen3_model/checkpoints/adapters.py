"""LoRA adapters as files have them: PEFT's folder or weights of a run, checked against the base.

Source: Hu et al. 2021, section 4.1: W + (alpha / r) B A. PEFT's files: `adapter_config.json` and
`adapter_model.safetensors` with names `base_model.model.<module>.lora_A.weight` of (r, inputs) and
`.lora_B.weight` of (outputs, r); an embedding's are `.lora_embedding_A` (r, rows) and `_B` (width, r). Where
a head is tied to the embedding, PEFT adapts it only with `ensure_weight_tying`, and stores the same adapter
for it once more, transposed.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_model.checkpoints.adapter_config import (
    CONFIG_FILE,
    AdapterConfig,
    read_adapter_config,
    stated_alpha_in,
)
from qwen3_model.checkpoints.checkpoint_files import read_run_text
from qwen3_model.checkpoints.safetensors_file import SafetensorsFile, open_safetensors
from qwen3_model.command.json_file import read_json
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import FormatError, WeightError

WEIGHTS_FILE = "adapter_model.safetensors"
NAME = re.compile(r"(?:base_model\.model\.)?(.+?)\.lora_(embedding_)?(A|B)(?:\.default)?(?:\.weight)?")
# peft adds the base's embedding, whole, to an adapter of it.
BASE_COPY = re.compile(r"(?:base_model\.model\.)?(.+?)\.base_layer\.weight")
SAVED = re.compile(r"(?:base_model\.model\.)?(.+?)(?:\.modules_to_save(?:\.default)?)?\.weight")
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
END_BYTES = 1 << 16
"""Bytes at either end of a file of weights that its fingerprint reads."""


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
    """The adapters by module, such as `model.layers.0.self_attn.q_proj`."""
    alpha: float
    """Scale is alpha / rank."""
    base_copies: dict[str, tuple[SafetensorsFile, str]] = field(default_factory=dict)
    """Weights of the base that lie beside its adapter, by module: their file and their name in it."""
    saved: dict[str, tuple[SafetensorsFile, str]] = field(default_factory=dict)
    """Whole weights that replace the base's, by module (PEFT's modules_to_save)."""
    ties_head: bool = True
    """Whether an adapter of the embedding is a tied head's, too; PEFT's own rarely are."""
    base: str = ""
    """Fingerprint of the base that the adapters were trained on; empty where nobody wrote it down."""
    base_name: str = ""
    """Name or folder of that base."""

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

    Ranks and scales that differ between modules (rank_pattern, alpha_pattern, use_rslora) are made one: B is
    scaled in float32, and smaller ranks are filled with zeros.

    Raises:
        FormatError: A file is missing or damaged, or asks for something other than LoRA without bias.
    """
    config = read_adapter_config(folder)
    if alpha is not None:
        config = replace(config, alpha=alpha, alpha_pattern={})
    if not (folder / WEIGHTS_FILE).is_file():
        raise FormatError(f"{folder} has {CONFIG_FILE} but no {WEIGHTS_FILE}; give a PEFT adapter folder")
    file = open_safetensors(folder / WEIGHTS_FILE)
    copies = {match[1]: (file, name) for name in file.tensors if (match := BASE_COPY.fullmatch(name))}
    saved = _saved_modules(file, config)
    whole = {name for _, name in (*copies.values(), *saved.values())}
    halves = {name: file.float32(name) for name in file.tensors if name not in whole}
    modules = join_halves(halves) if halves or not saved else {}
    adapters = AdapterSet(
        _uniform(modules, config), config.alpha, copies, saved, config.ties_head,
        trained_base(file), config.base,
    )  # fmt: skip
    return without_tied_head(adapters, config.path) if config.ties_head else adapters


def trained_base(file: SafetensorsFile) -> str:
    """Return the fingerprint of the base that a file's adapters were trained on, empty where it says none."""
    return read_run_text(file, "base")


def _saved_modules(file: SafetensorsFile, config: AdapterConfig) -> dict[str, tuple[SafetensorsFile, str]]:
    saved = {}
    for name in file.tensors:
        match = SAVED.fullmatch(name)
        if not match or NAME.fullmatch(name) or BASE_COPY.fullmatch(name):
            continue
        if not any(re.match(rf"(.*\.)?{re.escape(key)}$", match[1]) for key in config.modules_to_save):
            raise FormatError(f"{name} is no LoRA tensor, and modules_to_save does not name it")
        saved[match[1]] = (file, name)
    return saved


def _uniform(modules: dict[str, Adapter], config: AdapterConfig) -> dict[str, Adapter]:
    """Return the adapters with one rank and, by alpha / rank, one scale."""
    for module, adapter in modules.items():
        config.check_rank(module, adapter.a.shape[0])
    rank = max((adapter.a.shape[0] for adapter in modules.values()), default=1)
    result = {}
    for module, adapter in modules.items():
        own = adapter.a.shape[0]
        factor = config.scale(module, own) * rank / config.alpha
        b = adapter.b if factor == 1 else (adapter.b * np.float32(factor)).astype(np.float32)
        fill = ((0, rank - own), (0, 0))
        result[module] = (
            Adapter(np.pad(adapter.a, fill), np.pad(b, fill[::-1])) if own < rank else Adapter(adapter.a, b)
        )
    return result


def stated_alpha(source: Path) -> float | None:
    """Return LoRA's alpha by the configuration beside `source`, if there is one.

    Raises:
        FormatError: The file is damaged or states none.
    """
    path = _config_path(source)
    return None if path is None else stated_alpha_in(read_json(path), path)


def config_beside(source: Path) -> dict[str, object] | None:
    """Return the adapter_config.json in `source` or up to two folders above it.

    Raises:
        FormatError: It is no JSON object.
    """
    path = _config_path(source)
    return None if path is None else read_json(path)


def _config_path(source: Path) -> Path | None:
    folders = (source, source.absolute().parent, source.absolute().parent.parent)
    return next((path for folder in folders if (path := folder / CONFIG_FILE).is_file()), None)


def pair(tensors: Mapping[str, NDArray[np.float32]], alpha: float) -> AdapterSet:
    """Put the halves of adapters of one rank, by their names in either form, together.

    Raises:
        FormatError: A tensor is no adapter, a half is missing, or ranks differ.
    """
    modules = join_halves(tensors)
    ranks = {adapter.a.shape[0] for adapter in modules.values()}
    if len(ranks) != 1:
        raise FormatError(f"the adapters must have one rank of at least 1, found {sorted(ranks)}")
    return AdapterSet(modules, alpha)


def join_halves(tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, Adapter]:
    """Return the adapters by module, in order, each of a rank of its own.

    Raises:
        FormatError: A tensor is no adapter, a half is missing, or the halves have different ranks.
    """
    halves: dict[str, dict[str, NDArray[np.float32]]] = {}
    for name, values in tensors.items():
        match = NAME.fullmatch(name)
        if not match:
            raise FormatError(f"{name} is no LoRA tensor")
        if values.ndim != 2:
            raise FormatError(f"{name} has {values.ndim} dimensions; half an adapter has two")
        if match[3] in halves.setdefault(match[1], {}):
            raise FormatError(f"{name} is there twice, under names that mean the same")
        halves[match[1]][match[3]] = values
    if not halves:
        raise FormatError("there is no LoRA tensor")
    lone = [module for module, found in halves.items() if len(found) != 2]
    if lone:
        raise FormatError(f"{lone[0]} has only one half of its adapter")
    for module, found in halves.items():
        ranks = found["A"].shape[0], found["B"].shape[1]
        if len(set(ranks)) != 1 or 0 in ranks:
            raise FormatError(f"the adapters must have one rank of at least 1, found {ranks} for {module}")
    return {module: Adapter(found["A"], found["B"]) for module, found in sorted(halves.items())}


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
    for module, (file, name) in adapters.saved.items():
        if (shape := shapes.get(f"{module}.weight")) != (own := file.tensors[name].shape):
            problems.append(f"{module} is {shape}, the adapter's own is {own}")
    if problems:
        raise WeightError(f"the adapter is for another base: {'; '.join(problems[:5])}")


def base_fingerprint(base: Path) -> str:
    """Hash names, sizes and both ends of the base's files, but not their folder."""
    digest = hashlib.sha256()
    for path in _weight_files(base):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(END_BYTES))
            file.seek(max(0, size - END_BYTES))
            digest.update(file.read(END_BYTES))
    return digest.hexdigest()[:16]


def _weight_files(base: Path) -> Iterator[Path]:
    if base.is_file():
        yield base
    else:
        yield from sorted(base.glob("*.safetensors")) or sorted(base.rglob("*.safetensors"))
