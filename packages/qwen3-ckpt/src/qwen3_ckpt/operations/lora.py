"""Fuse adapters into a base, and export adapters of a checkpoint to PEFT's form."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3_ckpt.engine.hf_output import write_hf_folder
from qwen3_ckpt.sources.adapters import (
    check_base_copies,
    fuse_adapters,
    peft_targets,
    peft_tensors,
    read_float32,
)
from qwen3_ckpt.sources.sources import ModelFiles, need_model_files, sources_of
from qwen3_model.checkpoints.adapter_config import CONFIG_FILE, peft_config
from qwen3_model.checkpoints.adapters import (
    EMBEDDING,
    HEAD,
    WEIGHTS_FILE,
    AdapterSet,
    base_fingerprint,
    check_fits,
    config_beside,
    pair,
    read_peft,
    stated_alpha,
    trained_base,
    with_peft_embedding,
)
from qwen3_model.checkpoints.companions import companion_files, find_companions
from qwen3_model.checkpoints.fused import FusedLayout, is_fused, split_fused
from qwen3_model.checkpoints.model_weights import model_weights
from qwen3_model.checkpoints.rows import cast
from qwen3_model.checkpoints.safetensors_file import write_safetensors
from qwen3_model.checkpoints.source_file import SourceFile, open_source, refuse_changed
from qwen3_model.checkpoints.weight_files import open_checkpoint
from qwen3_model.command.files import output_directory, write_text_atomically
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError, FormatError, WeightError
from qwen3_model.text.tokenizer import TOKENIZER_FILES

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


def read_adapters(source: AdapterSource) -> tuple[AdapterSet, Qwen3Config | None, list[SourceFile]]:
    """Read adapters in any form, and the base's config where one is found; return the files read, too.

    Raises:
        Qwen3Error: There are none, they are damaged, or alpha is unknown.
    """
    hf_dir = source.hf_dir or find_companions(source.path)
    config = Qwen3Config.from_dir(hf_dir) if hf_dir else None
    if (source.path / WEIGHTS_FILE).is_file():
        files = [open_source(source.path / name) for name in (CONFIG_FILE, WEIGHTS_FILE)]
        return read_peft(source.path, source.alpha), config, files
    checkpoint = open_checkpoint(source.path)
    tensors = checkpoint.tensors
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
    adapters = replace(pair(halves, alpha), base=trained_base(checkpoint.first))
    return with_peft_embedding(adapters), config, checkpoint.sources()


@dataclass(frozen=True, slots=True)
class FuseRequest:
    """What to fuse and how."""

    base_dir: Path
    """Folder of the base."""
    adapter: AdapterSource
    dtype: str | None = None
    """BF16, F16 or F32, or None to keep each tensor's."""
    any_base: bool = False
    """Whether a base may be another than the one that the adapters were trained on."""


def fuse_lora(
    request: FuseRequest, output_dir: Path, *, force: bool, quiet: bool, shard_bytes: int
) -> tuple[AdapterSet, list[str]]:
    """Write a Hugging Face folder of the base's weights plus the adapters; return these, and notes.

    Raises:
        WeightError: The adapters are for another base.
        Qwen3Error: See `output_of`.
    """
    source, base_dir = request.adapter, request.base_dir
    base = open_checkpoint(base_dir)
    model = need_model_files(base_dir, None)
    adapters, _, files = read_adapters(source)
    notes = _check_base(adapters, base_dir, any_base=request.any_base)
    weights = model_weights(base.tensors, model.config)
    touched = adapters.modules.keys() | adapters.saved.keys()
    if model.config.tie_word_embeddings and EMBEDDING in touched and adapters.ties_head:
        notes.append("the head is tied to the embedding, so the embedding's adapter changes it, too")
    elif model.config.tie_word_embeddings and touched & {EMBEDDING, HEAD}:
        # PEFT changes one of the two at run time and leaves the other as it was.
        model = replace(model, config=replace(model.config, tie_word_embeddings=False))
        weights[f"{HEAD}.weight"] = weights[f"{EMBEDDING}.weight"].renamed(f"{HEAD}.weight")
        notes.append(
            "the adapter changes the embedding or the head alone, so the head is no longer tied: "
            "lm_head.weight is written, and config.json says tie_word_embeddings false"
        )
    check_fits(adapters, model.config)
    check_base_copies(adapters, weights)
    model = _with_own_tokenizer(model, source.path, notes)
    tensors = fuse_adapters(weights, adapters)
    if request.dtype:
        tensors = {name: cast(tensor, request.dtype) for name, tensor in tensors.items()}
    sources = sources_of([base_dir, source.path], [base], model)
    sources = replace(sources, files=(*sources.files, *files))
    notes += write_hf_folder(
        output_dir, tensors, model, sources, force=force, quiet=quiet, shard_bytes=shard_bytes
    )
    return adapters, notes


def _check_base(adapters: AdapterSet, base_dir: Path, *, any_base: bool) -> list[str]:
    """Return notes on a base that may be another than the adapters'; refuse one that is."""
    here = base_fingerprint(base_dir)
    if adapters.base and adapters.base != here:
        sentence = (
            f"the adapter was trained on another base than {base_dir} (fingerprint {adapters.base}, "
            f"here {here})"
        )
        if not any_base:
            raise WeightError(
                f"{sentence}; give the files that it was trained on, or --any-base where other files hold "
                "the same weights"
            )
        return [sentence]
    names = {name.lower() for name in base_dir.resolve().parts}
    stated = adapters.base_name.rstrip("/").rpartition("/")[2].lower()
    if adapters.base or not stated or any(stated in name for name in names):
        return []
    return [f"the adapter says that its base is {adapters.base_name}; nothing shows that {base_dir} is that"]


def _with_own_tokenizer(model: ModelFiles, adapter: Path, notes: list[str]) -> ModelFiles:
    """Let the adapter's own tokenizer and chat template take the place of the base's."""
    if not (adapter / WEIGHTS_FILE).is_file():
        return model
    own = [
        path for path in companion_files(adapter) if path.name in TOKENIZER_FILES and path.parent == adapter
    ]
    other = [
        path for path in own
        if not (model.folder / path.name).is_file()
        or (model.folder / path.name).read_bytes() != path.read_bytes()
    ]  # fmt: skip
    if other:
        listed = ", ".join(path.name for path in other)
        notes.append(
            f"{listed} of the adapter differ from the base's and were taken: it was trained with them"
        )
    files = (*model.files, *map(open_source, own))
    return replace(model, files=files, overrides=tuple(own))


def export_lora(source: AdapterSource, output_dir: Path, base_model: str, *, force: bool) -> AdapterSet:
    """Write a folder that PEFT opens as it is; return the adapters.

    Raises:
        ConfigError: The embedding is adapted, and no config says whether the head is tied to it.
        WeightError: The adapters do not fit the config beside them.
        OutputExistsError: `output_dir` is there and `force` is false.
    """
    adapters, config, files = read_adapters(source)
    if adapters.saved:
        raise FormatError(
            f"{source.path} has whole weights of modules_to_save; it is PEFT's own already, copy it as it is"
        )
    if config:
        check_fits(adapters, config)
    elif EMBEDDING in adapters.modules:
        raise ConfigError(
            "whether the head is tied to the adapted embedding decides what PEFT must know: name the "
            "base's folder with --hf-dir"
        )
    sources = [path for path in (source.path, source.hf_dir) if path] + [file.path for file in files]
    is_tied = bool(config and config.tie_word_embeddings and adapters.ties_head)
    base = base_model or adapters.base_name or _base_beside(source.path)
    with output_directory(output_dir, force=force, sources=sources) as folder:
        metadata = {"format": "pt"}
        if adapters.base:
            metadata["qwen3_train"] = json.dumps({"base": adapters.base})
        write_safetensors(folder / WEIGHTS_FILE, peft_tensors(adapters, is_tied=is_tied), metadata)
        stated = peft_config(
            base,
            rank=adapters.rank,
            alpha=adapters.alpha,
            dropout=0.0,
            targets=peft_targets(adapters, config),
        )
        if is_tied and EMBEDDING in adapters.modules:
            stated = {"ensure_weight_tying": True} | stated
        write_text_atomically(folder / CONFIG_FILE, json.dumps(stated, indent=2) + "\n")
        refuse_changed(files)
    return adapters


def _base_beside(source: Path) -> str:
    return str((config_beside(source) or {}).get("base_model_name_or_path", ""))
