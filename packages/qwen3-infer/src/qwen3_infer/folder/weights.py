"""Which weights a model gets and which adapter goes on them, checked against its config without MindSpore."""

from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.adapter_config import CONFIG_FILE
from qwen3_model.checkpoints.adapters import (
    EMBEDDING,
    WEIGHTS_FILE,
    AdapterSet,
    base_fingerprint,
    check_fits,
    pair,
    read_peft,
    stated_alpha,
    trained_base,
    with_peft_embedding,
)
from qwen3_model.checkpoints.fused import FusedLayout
from qwen3_model.checkpoints.hf_folder import open_hf_folder
from qwen3_model.checkpoints.model_weights import find_weights, some
from qwen3_model.checkpoints.safetensors_file import SafetensorsFile, to_float32
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.checkpoints.weight_files import open_checkpoint, open_weight_files
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError, FormatError, WeightError

MINDFORMERS_DEFAULT = FusedLayout()
COMPARE_ROWS = 4096
HALVES = (".lora_A.weight", ".lora_B.weight")
FUSED_NAMES = ("decoder.", "embedding.")


def open_hf_weights(folder: Path) -> Tensors:
    """Open the weights of a Hugging Face folder, whose names, shapes and dtypes must be its config's.

    Raises:
        ConfigError, FormatError, WeightError: They are not.
    """
    return open_hf_folder(folder).tensors


def open_checkpoint_weights(
    source: Path, strategy: Path | None, config: Qwen3Config, layout: FusedLayout = MINDFORMERS_DEFAULT
) -> Tensors:
    """Open the weights of a run, a checkpoint of any layout, a merged one or a file.

    Args:
        source: Where they are, see `open_weight_files`.
        strategy: Strategy files that are not beside them.
        config: The model's sizes.
        layout: Order of rows in mindformers' fused weights, should they be such.

    Raises:
        ConfigError, FormatError: They are missing or damaged.
        WeightError: They are another model's than `config` describes.
    """
    opened = open_checkpoint(source, strategy=strategy)
    if any(name.endswith(HALVES) for name in opened.tensors):
        raise ConfigError(
            f"{source} holds a LoRA adapter and not a model; give its base as --pretrained-model-dir BASE "
            f"and this as --adapter {source}"
        )
    weights, problems = find_weights(opened.tensors, config, layout)
    if problems:
        raise WeightError(f"{source} does not fit the model: {some(problems, '; ')}")
    return Tensors(opened.first, weights)


def open_adapter(source: Path, base: Path, config: Qwen3Config, weights: Tensors) -> AdapterSet:
    """Read a LoRA adapter and check that it belongs to the base.

    Args:
        source: PEFT's folder, or a run of qwen3-train that trained adapters, its checkpoint or a file of it.
        base: Where the weights under the adapter are.
        config: The base's sizes.
        weights: The base's weights.

    Raises:
        FormatError: It is no adapter, or damaged.
        WeightError: It is for another base.
    """
    if not source.exists():
        raise ConfigError(f"{source} does not exist; --adapter takes PEFT's folder or a run with adapters")
    adapters = read_peft(source) if (source / WEIGHTS_FILE).is_file() else _read_run(source, base)
    if adapters.saved or (
        config.tie_word_embeddings and EMBEDDING in adapters.modules and not adapters.ties_head
    ):
        what = "whole weights of modules_to_save" if adapters.saved else "an embedding without its tied head"
        raise WeightError(
            f"the adapter in {source} changes {what}, which is not applied beside a base; make one model of "
            "both with `qwen3-ckpt lora fuse`"
        )
    check_fits(adapters, config)
    for module, (file, name) in adapters.base_copies.items():
        if not _is_equal(file, name, weights, f"{module}.weight"):
            raise WeightError(
                f"the adapter in {source} holds its own {module}.weight, which differs from that of {base}; "
                "give the base that it was trained on"
            )
    return adapters


def _read_run(source: Path, base: Path) -> AdapterSet:
    """Read the adapters of a training run, whose files say which base they were trained on."""
    tensors = open_weight_files(source)
    names = [name for name in tensors.names() if name.endswith(HALVES) and not name.startswith("adam_")]
    if not names:
        raise FormatError(f"{source} holds no adapter (*.lora_A.weight, *.lora_B.weight or {WEIGHTS_FILE})")
    if any(name.startswith(FUSED_NAMES) for name in names):
        raise FormatError(
            f"{source} has mindformers' fused names; give what qwen3-ckpt lora export makes of it"
        )
    trained_on = trained_base(tensors.first)
    if trained_on and trained_on != base_fingerprint(base):
        raise WeightError(
            f"the adapter in {source} is for another base than {base} (fingerprint {trained_on}, here "
            f"{base_fingerprint(base)}); give the files that it was trained on, or, for the same weights in "
            "other files, what qwen3-ckpt lora export makes of it"
        )
    halves = {}
    for name in names:
        dtype, values = tensors.read(name, tuple(slice(0, size) for size in tensors.shape(name)))
        halves[name] = to_float32(values, dtype)
    # A checkpoint's file lies three folders below its run.
    alpha = stated_alpha(source.parent if source.is_file() else source)
    if alpha is None:
        raise ConfigError(f"no {CONFIG_FILE} lies beside {source}, so the adapter's scale is unknown")
    return with_peft_embedding(pair(halves, alpha))


def _is_equal(file: SafetensorsFile, name: str, weights: Tensors, weight: str) -> bool:
    """Compare by value, some rows at a time."""
    shape = file.tensors[name].shape
    if weight not in weights or weights.shape(weight) != shape:
        return False
    whole, dtype = file.raw(name), file.tensors[name].dtype
    for start in range(0, shape[0], COMPARE_ROWS):
        rows = slice(start, min(start + COMPARE_ROWS, shape[0]))
        own_dtype, own = weights.read(weight, (rows, *(slice(0, size) for size in shape[1:])))
        if not np.array_equal(to_float32(whole[rows], dtype), to_float32(own, own_dtype)):
            return False
    return True
