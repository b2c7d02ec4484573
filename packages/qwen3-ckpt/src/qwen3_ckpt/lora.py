"""Fuse adapters into a base, and export adapters of a checkpoint to PEFT's form."""

import json
from dataclasses import dataclass
from pathlib import Path

from qwen3_ckpt.adapters import check_base_copies, fuse_adapters, peft_config, peft_tensors, read_float32
from qwen3_ckpt.hf_output import write_hf_folder
from qwen3_ckpt.sources import need_model_files, sources_of
from qwen3_model.adapters import (
    CONFIG_FILE,
    EMBEDDING,
    WEIGHTS_FILE,
    AdapterSet,
    check_fits,
    config_beside,
    pair,
    read_peft,
    stated_alpha,
    with_peft_embedding,
)
from qwen3_model.companions import find_companions
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.files import output_directory
from qwen3_model.fused import FusedLayout, is_fused, split_fused
from qwen3_model.model_weights import model_weights
from qwen3_model.safetensors_file import write_safetensors
from qwen3_model.weight_files import open_checkpoint

HALVES = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where adapters are and how to read them."""

    path: Path
    """A PEFT folder, or a checkpoint (distributed or merged) that holds adapter weights."""
    alpha: float | None
    """LoRA's alpha; None to read it from an adapter_config.json beside the source."""
    hf_dir: Path | None
    """Folder with the base's config.json; None to look beside the source."""
    layout: FusedLayout
    """Row order of fused weights in the source."""


def read_adapters(source: AdapterSource) -> tuple[AdapterSet, Qwen3Config | None]:
    """Read adapters in any form, and the base's config where one is found.

    Raises:
        Qwen3Error: There are none, they are damaged, or alpha is unknown.
    """
    hf_dir = source.hf_dir or find_companions(source.path)
    config = Qwen3Config.from_dir(hf_dir) if hf_dir else None
    if (source.path / WEIGHTS_FILE).is_file():
        return read_peft(source.path, source.alpha), config
    tensors = open_checkpoint(source.path).tensors
    if is_fused(tensors):
        if config is None:
            raise ConfigError("fused adapters are split by the model's heads: name its folder with --hf-dir")
        tensors = split_fused(tensors, config, source.layout)
    tensors = {n: t for n, t in tensors.items() if n.endswith(HALVES) and not n.startswith("adam_")}
    if not tensors:
        raise FormatError(f"{source.path} holds no adapter weights (*.lora_A.weight, *.lora_B.weight)")
    halves = {name: read_float32(tensor) for name, tensor in tensors.items()}
    alpha = stated_alpha(source.path) if source.alpha is None else source.alpha
    if alpha is None:
        raise ConfigError(f"no {CONFIG_FILE} lies beside {source.path}; state --lora-alpha")
    return with_peft_embedding(pair(halves, alpha)), config


def fuse_lora(
    base_dir: Path, source: AdapterSource, output_dir: Path, *, force: bool, quiet: bool, shard_bytes: int
) -> AdapterSet:
    """Write a Hugging Face folder whose weights are the base's plus the adapters; return the adapters.

    Raises:
        WeightError: The adapters are for another base.
        OutputExistsError: `output_dir` is there and `force` is false.
    """
    base = open_checkpoint(base_dir)
    model = need_model_files(base_dir, None)
    adapters, _ = read_adapters(source)
    check_fits(adapters, model.config)
    weights = model_weights(base.tensors, model.config)
    check_base_copies(adapters, weights)
    sources = sources_of([base_dir, source.path], [base], model)
    write_hf_folder(
        output_dir, fuse_adapters(weights, adapters), model, sources,
        force=force, quiet=quiet, shard_bytes=shard_bytes,
    )  # fmt: skip
    return adapters


def export_lora(source: AdapterSource, output_dir: Path, base_model: str, *, force: bool) -> AdapterSet:
    """Write a folder that PEFT opens as it is; return the adapters.

    Raises:
        ConfigError: The embedding is adapted, and no config says whether the head is tied to it.
        WeightError: The adapters do not fit the config beside them.
        OutputExistsError: `output_dir` is there and `force` is false.
    """
    adapters, config = read_adapters(source)
    if config:
        check_fits(adapters, config)
    elif EMBEDDING in adapters.modules:
        raise ConfigError(
            "whether the head is tied to the adapted embedding decides what PEFT must be told: name the "
            "base's folder with --hf-dir"
        )
    sources = [path for path in (source.path, source.hf_dir) if path]
    is_tied = bool(config and config.tie_word_embeddings)
    base = base_model or _base_beside(source.path)
    with output_directory(output_dir, force=force, sources=sources) as folder:
        write_safetensors(folder / WEIGHTS_FILE, peft_tensors(adapters, is_tied=is_tied), {"format": "pt"})
        text = json.dumps(peft_config(adapters, config, base, is_tied=is_tied), indent=2)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    return adapters


def _base_beside(source: Path) -> str:
    return str((config_beside(source) or {}).get("base_model_name_or_path", ""))
