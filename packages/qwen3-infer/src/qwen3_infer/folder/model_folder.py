"""A Hugging Face folder whose config, weights, tokenizer and generation defaults agree, without MindSpore."""

from dataclasses import dataclass
from pathlib import Path

from qwen3_infer.folder.generation_config import GenerationConfig, read_generation_config
from qwen3_infer.folder.weights import (
    MINDFORMERS_DEFAULT,
    open_adapter,
    open_checkpoint_weights,
    open_hf_weights,
)
from qwen3_model.checkpoints.adapter_config import CONFIG_FILE
from qwen3_model.checkpoints.adapters import AdapterSet
from qwen3_model.checkpoints.fused import FusedLayout
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.checkpoints.weight_files import is_distributed
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.text.tokenizer import Qwen3Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """What generation needs of a folder besides the weights."""

    path: Path
    """The folder."""
    config: Qwen3Config
    """What config.json says."""
    tokenizer: Qwen3Tokenizer
    """The tokenizer of tokenizer.json."""
    defaults: GenerationConfig
    """What generation_config.json says."""
    weights: Tensors
    """The folder's, or those of a checkpoint."""
    adapter: AdapterSet | None = None
    """LoRA's, beside the weights."""


def open_model_folder(
    path: Path,
    *,
    checkpoint: Path | None = None,
    strategy: Path | None = None,
    adapter: Path | None = None,
    fused_layout: FusedLayout = MINDFORMERS_DEFAULT,
) -> ModelFolder:
    """Open a folder and check that its parts belong together; the weights' headers only are read.

    Args:
        path: Has config.json, the tokenizer's files and, unless `checkpoint` is given, the weights.
        checkpoint: Other weights, see `weights`.
        strategy: Strategy files of `checkpoint`, where they are not beside it.
        adapter: PEFT's folder or a run that trained adapters.
        fused_layout: Order of rows in mindformers' fused weights, should `checkpoint` have them.

    Raises:
        FormatError: The folder or a part of it is missing or damaged.
        WeightError: Weights are missing, unexpected, or of a shape that config.json does not give.
        ConfigError: The tokenizer, the config and the generation defaults disagree.
    """
    if not path.exists():
        raise FormatError(f"{path} does not exist; --pretrained-model-dir takes a Hugging Face model folder")
    if not path.is_dir():
        raise FormatError(f"{path} is a file; --pretrained-model-dir takes a Hugging Face model folder")
    _refuse_other_folders(path)
    config = Qwen3Config.from_dir(path)
    if checkpoint is None:
        weights = open_hf_weights(path)
    else:
        weights = open_checkpoint_weights(checkpoint, strategy, config, fused_layout)
    tokenizer = Qwen3Tokenizer.from_dir(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{path}: tokenizer.json has {tokenizer.vocab_size} tokens but config.json gives the embedding "
            f"{config.vocab_size} rows; they are of different models"
        )
    defaults = read_generation_config(path, config)
    if foreign := [number for number in defaults.stop_ids if number >= tokenizer.vocab_size]:
        raise ConfigError(
            f"{path}: the end-of-text ids {foreign} are no tokens of tokenizer.json, which has "
            f"{tokenizer.vocab_size}; they are of different models"
        )
    return ModelFolder(
        path=path,
        config=config,
        tokenizer=tokenizer,
        defaults=defaults,
        weights=weights,
        adapter=open_adapter(adapter, checkpoint or path, config, weights) if adapter else None,
    )


def _refuse_other_folders(path: Path) -> None:
    """Raise when a folder without config.json is something that another option takes."""
    if (path / "config.json").exists():
        return
    if (path / CONFIG_FILE).exists():
        raise ConfigError(
            f"{path} is a LoRA adapter; give its base as --pretrained-model-dir BASE and this as "
            f"--adapter {path}"
        )
    if is_distributed(path):
        raise ConfigError(
            f"{path} is a distributed checkpoint without config.json; give the model's folder as "
            f"--pretrained-model-dir and this as --load-checkpoint {path}"
        )
