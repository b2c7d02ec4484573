"""All that can be known and refused before MindSpore is imported: data, steps, learning rates, space."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.files import require_free_space
from qwen3_model.tokens import Manifest, TokenFile, open_tokens, read_manifest
from qwen3_train.batches import BatchPlan
from qwen3_train.blend import Blend
from qwen3_train.checkpoint import TrainState, choose_checkpoint, read_state
from qwen3_train.gpt_dataset import Dataset, DocumentOptions, build_dataset
from qwen3_train.lr_schedule import Schedule, make_schedule
from qwen3_train.run_folder import refuse_used_folder, restore_replaced
from qwen3_train.settings import TrainSettings

FINGERPRINT_BYTES = 1 << 20
"""Bytes at either end of a token file that its fingerprint reads, besides all document lengths."""
SCAN_LIMIT_BYTES = 2 << 30
"""Token files without manifest are searched for too large ids up to here; later ones are met step by step."""
SCAN_BLOCK = 1 << 24
"""Ids looked at at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run that nothing known beforehand speaks against."""

    settings: TrainSettings
    train: Dataset
    valid: Dataset | None
    """What to evaluate on, or None for no evaluation."""
    num_valid: int
    options: DocumentOptions
    plan: BatchPlan
    last_step: int
    """Step after which the run ends."""
    schedule: Schedule
    fingerprint: str
    """Of the data, their order and the batch size; a resumed run must have the same."""
    resume_path: Path | None
    """Checkpoint to continue from."""
    notes: tuple[str, ...]
    """Sentences for the log."""


def prepare_run(settings: TrainSettings, *, force: bool) -> PreparedRun:
    """Check a run against its files and index its data.

    Raises:
        ConfigError: Settings do not fit the data.
        FormatError: A token file or checkpoint is damaged.
        OutputExistsError: The output folder holds a run.
    """
    if settings.resume:
        restore_replaced(settings.output_dir)
    refuse_used_folder(settings.output_dir, force=force, resume=settings.resume)
    _check_weights(settings)
    notes: list[str] = []
    options = _document_options(settings, notes)
    if settings.model.eos_token_id is None and options.eod is not None:
        # Text ends where documents end, so generation should stop there.
        settings = replace(settings, model=replace(settings.model, eos_token_id=options.eod))
    train, valid = _datasets(settings)
    plan = _plan(settings, train)
    last_step = min(plan.num_steps, settings.stop_step or plan.num_steps)
    fingerprint = _fingerprint(settings, plan)
    resume_path = _resume_path(settings, fingerprint, last_step, notes)
    # Weights and two moments in float32, and one more checkpoint while the new one is written.
    checkpoint_bytes = settings.model.num_parameters() * 12
    require_free_space(settings.output_dir, checkpoint_bytes * (settings.keep_max + 1))
    return PreparedRun(
        settings=settings,
        train=train,
        valid=valid,
        num_valid=0 if valid is None else min(len(valid), settings.data.num_valid or len(valid)),
        options=options,
        plan=plan,
        last_step=last_step,
        schedule=make_schedule(settings.lr_schedule, plan.num_steps),
        fingerprint=fingerprint,
        resume_path=resume_path,
        notes=tuple(notes),
    )


def _check_weights(settings: TrainSettings) -> None:
    source = settings.weights_from
    if source is not None and not source.exists():
        raise ConfigError(
            f"{source} does not exist; give a Hugging Face folder or a checkpoint to start from"
        )
    if settings.data.seq_length > settings.model.max_position_embeddings:
        raise ConfigError(
            f"seq_length={settings.data.seq_length} is longer than "
            f"max_position_embeddings={settings.model.max_position_embeddings}; shorten one or raise the "
            "other"
        )


def _document_options(settings: TrainSettings, notes: list[str]) -> DocumentOptions:
    data = settings.data
    manifests = []
    for prefix in _prefixes(settings):
        tokens, manifest = open_tokens(Path(prefix)), read_manifest(Path(prefix))
        if manifest is None:
            notes.append(
                f"{prefix} has no manifest (.json), so its tokenizer and end-of-document id are not checked"
            )
            _check_largest_id(tokens, prefix, settings.model.vocab_size)
        else:
            _check_manifest(manifest, prefix, settings)
            manifests.append(manifest)
    eod = data.eod if data.eod is not None else next((manifest.eod_id for manifest in manifests), None)
    if eod is not None and data.pad == eod:
        raise ConfigError(
            f"pad={data.pad} is also the end-of-document id, which would lose its meaning; use pad: -1"
        )
    asked = data.eod_mask_loss or data.reset_position_ids or data.separate_documents
    if asked and eod is None:
        raise ConfigError(
            "eod_mask_loss, reset_position_ids and reset_attention_mask need the end-of-document id: eod"
        )
    if asked and manifests and not any(manifest.eod_appended for manifest in manifests):
        notes.append(
            "the data have no end-of-document ids (made with --no-append-eod), so document options do nothing"
        )
    return DocumentOptions(
        eod=eod,
        pad=data.pad,
        eod_mask_loss=data.eod_mask_loss,
        reset_position_ids=data.reset_position_ids,
        separate_documents=data.separate_documents,
    )


def _check_manifest(manifest: Manifest, prefix: str, settings: TrainSettings) -> None:
    if manifest.vocab_size > settings.model.vocab_size:
        raise ConfigError(
            f"{prefix} was made with {manifest.tokenizer_name}, a vocabulary of {manifest.vocab_size}, "
            f"but the model has vocab_size={settings.model.vocab_size}; use data of the model's "
            "tokenizer or raise vocab_size"
        )
    if settings.data.eod is not None and settings.data.eod != manifest.eod_id:
        raise ConfigError(
            f"eod={settings.data.eod} but documents of {prefix} end with {manifest.eod_id}; set "
            f"--train_dataset.data_loader.config.eod {manifest.eod_id} or leave it out"
        )
    tokenizer = settings.hf_dir / "tokenizer.json" if settings.hf_dir else None
    if tokenizer is not None and tokenizer.is_file():
        digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        if manifest.tokenizer_sha256 and manifest.tokenizer_sha256 != digest:
            raise ConfigError(
                f"{prefix} was made with another tokenizer ({manifest.tokenizer_name}) than {tokenizer}; "
                "preprocess the data with the model's own"
            )


def _check_largest_id(tokens: TokenFile, prefix: str, vocab_size: int) -> None:
    ids = tokens.ids[: SCAN_LIMIT_BYTES // tokens.dtype.itemsize]
    for first in range(0, len(ids), SCAN_BLOCK):
        largest = int(ids[first : first + SCAN_BLOCK].max())
        if largest >= vocab_size:
            raise ConfigError(
                f"{prefix}.bin holds id {largest}, but the model has vocab_size={vocab_size}; use data of "
                "the model's tokenizer or raise vocab_size"
            )


def _datasets(settings: TrainSettings) -> tuple[Dataset, Dataset | None]:
    data = settings.data
    train = build_dataset(
        data.train,
        data.split,
        "train",
        seq_length=data.seq_length,
        num_samples=data.num_train,
        seed=data.seed,
    )
    if train is None or len(train) == 0:
        raise ConfigError(f"split={data.split!r} leaves nothing to train on")
    if not settings.do_eval:
        return train, None
    if data.valid is None:
        raise ConfigError(
            f"do_eval=True but split={data.split!r} leaves no valid part; use for example split: '95, 5, 0'"
        )
    valid = build_dataset(
        data.valid,
        data.split,
        "valid",
        seq_length=data.seq_length,
        num_samples=data.num_valid,
        seed=data.seed,
    )
    return train, valid


def _plan(settings: TrainSettings, train: Dataset) -> BatchPlan:
    num_samples = min(len(train), settings.data.num_train or len(train))
    plan = BatchPlan(
        micro_batch=settings.batch_size,
        num_micro_batches=settings.accumulation,
        num_samples=num_samples,
        num_epochs=settings.epochs,
    )
    if plan.num_steps < 1:
        raise ConfigError(
            f"one step takes {plan.global_batch} samples (batch_size {settings.batch_size} x "
            f"gradient_accumulation_steps {settings.accumulation}) but the data give {num_samples} of "
            f"seq_length {settings.data.seq_length}; make the batch or seq_length smaller, or raise sizes"
        )
    return plan


def _resume_path(settings: TrainSettings, fingerprint: str, last_step: int, notes: list[str]) -> Path | None:
    if not settings.resume:
        return None
    source, name = settings.resume_from or settings.output_dir, settings.resume_file
    if source.is_file():
        source, name = source.parent.parent, source.name
    files, passed_over = choose_checkpoint(source, settings.layout.num_ranks, name)
    notes += [f"passed over: {problem}" for problem in passed_over]
    state = _read_state(files[0])
    if state.data and state.data != fingerprint:
        raise ConfigError(
            f"{files[0]} was trained on other data, order or batch size (fingerprint {state.data}, now "
            f"{fingerprint}); resume with the settings and files that it began with"
        )
    if state.global_step >= last_step:
        raise ConfigError(
            f"{files[0].name} has finished step {state.global_step} of {last_step}; there is nothing "
            "left to train, raise runner_config.epochs or sizes"
        )
    return files[0]


def _read_state(path: Path) -> TrainState:
    from qwen3_model.safetensors_file import open_safetensors

    return read_state(open_safetensors(path))


def _fingerprint(settings: TrainSettings, plan: BatchPlan) -> str:
    """Hash what decides which tokens each step sees; not the paths, so that data may move."""
    data, digest = settings.data, hashlib.sha256()
    for prefix in data.train.prefixes:
        tokens = open_tokens(Path(prefix))
        digest.update(np.ascontiguousarray(tokens.sequence_lengths).tobytes())
        _hash_ends(Path(f"{prefix}.bin"), digest.update)
    told = (data.train.weights, data.split, data.seq_length, data.num_train, data.seed, plan.global_batch)
    options = (data.pad, data.eod_mask_loss, data.reset_position_ids, data.separate_documents)
    digest.update(repr((told, options)).encode())
    return digest.hexdigest()[:16]


def _hash_ends(path: Path, update: Callable[[bytes], None]) -> None:
    size = path.stat().st_size
    update(str(size).encode())
    with path.open("rb") as file:
        update(file.read(FINGERPRINT_BYTES))
        file.seek(max(0, size - FINGERPRINT_BYTES))
        update(file.read(FINGERPRINT_BYTES))


def _prefixes(settings: TrainSettings) -> list[str]:
    blends: list[Blend] = [settings.data.train]
    if settings.do_eval and settings.data.valid is not None:
        blends.append(settings.data.valid)
    prefixes = list(dict.fromkeys(prefix for blend in blends for prefix in blend.prefixes))
    for prefix in prefixes:
        if prefix.endswith((".bin", ".idx")):
            raise FormatError(f"{prefix}: give the path without .bin or .idx, as {prefix[:-4]}")
    return prefixes
