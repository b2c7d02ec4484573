"""Instruction data of a run, checked against its model; free of MindSpore."""

import hashlib
from pathlib import Path

import numpy as np

from qwen3_model.errors import ConfigError
from qwen3_model.text.sft import open_sft
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_train.data.run_data import RunData
from qwen3_train.data.sft_blend import SftBlend, join_samples
from qwen3_train.data.sft_dataset import SHIFTED, SftDataset, SftSamples
from qwen3_train.data.sft_samples import make_samples
from qwen3_train.settings.conversation_blend import BlendSettings
from qwen3_train.settings.datasets import Conversations
from qwen3_train.settings.hf_loader import HfDataSettings, SftFileSettings
from qwen3_train.settings.run import TrainSettings


def prepare_sft(settings: TrainSettings, data: Conversations, notes: list[str]) -> RunData:
    """Make or open the samples that `data` describes; `notes` gets sentences for the log.

    Raises:
        ConfigError, FormatError: Data, tokenizer and model do not fit each other.
    """
    if settings.do_eval and settings.eval_data is None:
        raise ConfigError(
            "do_eval=True needs held-out conversations; describe them in eval_dataset, with the keys of "
            "train_dataset, or set it to False"
        )
    tokenizer, train, digest = _dataset(settings, data, notes, data.seed if data.shuffle else None)
    if tokenizer.vocab_size > settings.model.vocab_size:
        raise ConfigError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, but the model has "
            f"vocab_size={settings.model.vocab_size}; use the model's own tokenizer or raise vocab_size"
        )
    valid = _prepare_valid(settings, settings.eval_data, tokenizer, notes) if settings.eval_data else None
    return RunData(
        train=train,
        valid=valid,
        num_valid=len(valid) if valid else 0,
        options=SHIFTED,
        eos_id=tokenizer.eos_id,
        stop_ids=tuple(dict.fromkeys((tokenizer.eos_id, tokenizer.pad_id))),
        fingerprint=lambda global_batch: _fingerprint(digest, data, global_batch),
    )


def _dataset(
    settings: TrainSettings, data: Conversations, notes: list[str], seed: int | None
) -> tuple[Qwen3Tokenizer, SftDataset | SftBlend, str]:
    """Return tokenizer, samples in training order, and a hash of what they are made of."""
    if not isinstance(data, BlendSettings):
        tokenizer, samples = _samples(settings, data, notes)
        return tokenizer, SftDataset(samples, data.seq_length, tokenizer.pad_id, seed), samples.digest()
    made = []
    for number, part in enumerate(data.parts):
        own_notes: list[str] = []
        made.append(_samples(settings, part, own_notes))
        notes += [f"datasets.{number}: {sentence}" for sentence in own_notes]
        if made[-1][0].sha256 != made[0][0].sha256:
            raise ConfigError(
                f"datasets.{number} uses another tokenizer ({made[-1][0].name}) than datasets.0 "
                f"({made[0][0].name}); name the same one in all"
            )
    tokenizer, all_samples = made[0][0], [samples for _, samples in made]
    if data.weights is None:
        joint = join_samples(all_samples)
        return tokenizer, SftDataset(joint, data.seq_length, tokenizer.pad_id, seed), joint.digest()
    assert data.num_train is not None
    parts = [
        SftDataset(samples, data.seq_length, tokenizer.pad_id, None if seed is None else seed + number)
        for number, samples in enumerate(all_samples)
    ]
    digest = f"{[samples.digest() for samples in all_samples]} {data.weights} {data.num_train}"
    return tokenizer, SftBlend(parts, data.weights, data.num_train), digest


def _samples(
    settings: TrainSettings, data: HfDataSettings | SftFileSettings, notes: list[str]
) -> tuple[Qwen3Tokenizer, SftSamples]:
    if isinstance(data, SftFileSettings):
        return open_samples(data, settings.tokenizer_dir)
    tokenizer = _tokenizer(data.tokenizer_dir or settings.tokenizer_dir)
    samples, own_notes = make_samples(data, tokenizer)
    notes += own_notes
    return tokenizer, samples


def _prepare_valid(
    settings: TrainSettings, data: Conversations, tokenizer: Qwen3Tokenizer, notes: list[str]
) -> SftDataset | SftBlend:
    """Return the held-out conversations in the order of the data."""
    own_notes: list[str] = []
    own, valid, _ = _dataset(settings, data, own_notes, None)
    notes += [f"eval_dataset: {sentence}" for sentence in own_notes]
    if own.sha256 != tokenizer.sha256:
        raise ConfigError(
            f"eval_dataset uses another tokenizer ({own.name}) than train_dataset; name the same one in both"
        )
    return valid


def _fingerprint(digest: str, data: Conversations, global_batch: int | None) -> str:
    seed = data.seed if data.shuffle else None
    order = f"{seed} anew" if seed is not None else seed
    facts = f"{digest} {data.seq_length} {order} {global_batch}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _tokenizer(directory: Path | None) -> Qwen3Tokenizer:
    if directory is None:
        raise ConfigError(
            "instruction data need a tokenizer; give pretrained_model_dir, or tokenizer.pretrained_model_dir "
            "in the AlpacaInstructDataHandler"
        )
    return Qwen3Tokenizer.from_dir(directory)


def open_samples(data: SftFileSettings, hf_dir: Path | None) -> tuple[Qwen3Tokenizer, SftSamples]:
    """Return the run's tokenizer and the samples that qwen3-data sft has made with it.

    Raises:
        ConfigError, FormatError: The files are damaged or of another tokenizer.
    """
    file = open_sft(data.prefix)
    tokenizer = _tokenizer(hf_dir)
    if tokenizer.sha256 != file.manifest.tokenizer_sha256:
        raise ConfigError(
            f"{data.prefix} was made with another tokenizer ({file.manifest.tokenizer_name}) than {hf_dir}; "
            "make the instruction data again with the model's own"
        )
    samples = SftSamples(
        file.tokens.ids[: file.tokens.num_tokens],
        file.mask_T,
        np.asarray(file.tokens.sequence_lengths, np.int32),
        np.asarray(file.tokens.document_indices, np.int64),
    )
    return tokenizer, samples
