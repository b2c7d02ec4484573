"""Records to training samples: encoded, cut, packed, and kept on disk under a hash of all that made them."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from qwen3_model.command.files import write_atomically
from qwen3_model.command.plain_text import counted
from qwen3_model.command.progress import Progress
from qwen3_model.errors import FormatError
from qwen3_model.text.chat_encoding import FitCounts, encode_samples, encode_with, fit_samples
from qwen3_model.text.chat_pieces import ChatRenderer, Piece
from qwen3_model.text.conversations import ConversationError
from qwen3_model.text.packing import ChatSample, Packer
from qwen3_model.text.tokenizer import Qwen3Tokenizer
from qwen3_train.data.hf_records import load_records, read_rows
from qwen3_train.data.sft_dataset import SftSamples
from qwen3_train.data.vicuna_prompt import VicunaPrompt
from qwen3_train.settings.hf_loader import LOADER, ChatSettings, HfDataSettings

if TYPE_CHECKING:
    from datasets import Dataset

Number = TypeVar("Number", bound=np.integer)
CACHE_VERSION = 2
"""Raised whenever the same records would give other samples."""
BLOCK_RECORDS = 1000
SHOWN = 3
"""Records that a sentence names."""


@dataclass(slots=True)
class SampleCounts:
    """What became of the records."""

    fit: FitCounts = field(default_factory=FitCounts)
    num_bad: int = 0
    bad: list[str] = field(default_factory=list)
    """The first records that were skipped, and why."""
    num_without_thought: int = 0
    """Answers that are learned without the thought of their record."""

    def notes(self, seq_length: int) -> list[str]:
        """Return what a user must know, as sentences."""
        notes = []
        if self.fit.num_dropped:
            notes.append(
                f"{counted(self.fit.num_dropped, 'conversation')} left out, since no token to learn lies "
                "within "
                f"seq_length {seq_length}: {_first(self.fit.dropped, self.fit.num_dropped)}"
            )
        if self.fit.num_truncated:
            notes.append(f"{counted(self.fit.num_truncated, 'conversation')} cut to seq_length {seq_length}")
        if self.num_bad:
            notes.append(f"{counted(self.num_bad, 'record')} skipped: {_first(self.bad, self.num_bad)}")
        if self.num_without_thought:
            notes.append(
                f"{self.num_without_thought} answers are learned without the thought of their record, which "
                "the chat template takes out of earlier turns; thoughts: keep or split has them"
            )
        return notes


def make_samples(
    data: HfDataSettings, tokenizer: Qwen3Tokenizer, *, quiet: bool = False
) -> tuple[SftSamples, list[str]]:
    """Return the samples of a dataset and sentences about what was left out.

    Raises:
        ConfigError, FormatError: The dataset, a record or the whole result cannot be used.
    """
    records = load_records(data)
    key = _key(records, data.chat, tokenizer)
    cache = (data.cache_dir or Path.home() / ".cache/qwen3-train") / "sft" / f"{key}.npz"
    if (found := _read_cache(cache)) is not None:
        samples, counts = found
        return samples, [f"samples of an earlier run: {cache}", *counts.notes(data.chat.seq_length)]
    counts = SampleCounts()
    with Progress("tokenising", len(records), "records", quiet=quiet) as progress:
        samples = pack_samples(_encode(records, data.chat, tokenizer, counts, progress), data.chat)
    if not len(samples.lengths_S):
        raise FormatError(
            f"{LOADER}: no conversation is left to learn from; "
            f"{' '.join(counts.notes(data.chat.seq_length))}; raise seq_length or mend the data"
        )
    _write_cache(cache, samples, counts)
    return samples, counts.notes(data.chat.seq_length)


def pack_samples(conversations: Iterable[ChatSample], chat: ChatSettings) -> SftSamples:
    """Put conversations into packs of at most `seq_length` tokens."""
    if chat.pack_strategy == "truncate":
        return _cut_evenly(list(conversations), chat.seq_length)
    packer = Packer(chat.seq_length, is_open=chat.pack_strategy == "pack")
    packs = list(packer.pack(conversations))
    flat = [sample for pack in packs for sample in pack]
    return SftSamples(
        _join([sample.ids_L for sample in flat], np.int32),
        _join([sample.mask_L for sample in flat], np.uint8),
        np.array([len(sample.ids_L) for sample in flat], np.int32),
        np.concatenate([[0], np.cumsum([len(pack) for pack in packs])]).astype(np.int64),
    )


def _cut_evenly(conversations: list[ChatSample], seq_length: int) -> SftSamples:
    """Put conversations back to back and cut every `seq_length` tokens."""
    ids_T = _join([sample.ids_L for sample in conversations], np.int32)
    mask_T = _join([sample.mask_L for sample in conversations], np.uint8)
    ends = np.cumsum([len(sample.ids_L) for sample in conversations], dtype=np.int64)
    cuts = np.arange(0, len(ids_T) + seq_length, seq_length).clip(max=len(ids_T))
    borders = np.unique(np.concatenate([[0], ends, cuts]))
    return SftSamples(
        ids_T, mask_T, np.diff(borders).astype(np.int32), np.searchsorted(borders, np.unique(cuts))
    )


def _encode(
    records: "Dataset",
    chat: ChatSettings,
    tokenizer: Qwen3Tokenizer,
    counts: SampleCounts,
    progress: Progress,
) -> Iterator[ChatSample]:
    style = _style(chat, tokenizer)
    encode, special_ids = encode_with(tokenizer), tokenizer.special_tokens
    limit = None if chat.pack_strategy == "truncate" else chat.seq_length

    def encoded(waiting: list[list[Piece]], origins: list[str]) -> Iterator[ChatSample]:
        samples = encode_samples(waiting, encode, special_ids)
        yield from fit_samples(samples, origins, counts.fit, limit=limit, drop=chat.too_long == "drop")

    origins: list[str] = []
    waiting: list[list[Piece]] = []
    for number, record in enumerate(read_rows(records)):
        try:
            found = style.samples_of(record)
        except ConversationError as error:
            if chat.on_bad_record == "fail":
                raise FormatError(
                    f"{LOADER}: record {number} {error}; mend it, or set on_bad_record: skip in its handler"
                ) from error
            counts.num_bad += 1
            if len(counts.bad) < SHOWN:
                counts.bad.append(f"record {number} {error}")
            continue
        waiting += found
        origins += [f"record {number}"] * len(found)
        if len(waiting) >= BLOCK_RECORDS:
            yield from encoded(waiting, origins)
            waiting, origins = [], []
            progress.advance(number + 1 - progress.done)
    yield from encoded(waiting, origins)
    counts.num_without_thought = style.num_without_thought
    progress.advance(len(records) - progress.done)


def _style(chat: ChatSettings, tokenizer: Qwen3Tokenizer) -> ChatRenderer | VicunaPrompt:
    if chat.prompt_style == "vicuna":
        return VicunaPrompt(tokenizer)
    return ChatRenderer(tokenizer, loss_on=chat.loss_on, empty_think=chat.empty_think, thoughts=chat.thoughts)


def _key(records: "Dataset", chat: ChatSettings, tokenizer: Qwen3Tokenizer) -> str:
    """Hash what the samples depend on: the records themselves, the settings, tokenizer and template."""
    digest = hashlib.sha256()
    template = tokenizer.chat_template if chat.prompt_style == "qwen" else ""
    for part in (str(CACHE_VERSION), tokenizer.sha256, template, json.dumps(asdict(chat))):
        digest.update(part.encode())
    for batch in records.iter(batch_size=BLOCK_RECORDS):
        digest.update(json.dumps(batch, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _write_cache(path: Path, samples: SftSamples, counts: SampleCounts) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(
                file, ids_T=samples.ids_T, mask_T=samples.mask_T, lengths_S=samples.lengths_S,
                firsts_P=samples.firsts_P, counts=np.array(json.dumps(asdict(counts))),
            )  # fmt: skip

    write_atomically(path, write)


def _read_cache(path: Path) -> tuple[SftSamples, SampleCounts] | None:
    try:
        with np.load(path) as arrays:
            stated = json.loads(str(arrays["counts"]))
            counts = SampleCounts(**{**stated, "fit": FitCounts(**stated["fit"])})
            return SftSamples(
                arrays["ids_T"], arrays["mask_T"], arrays["lengths_S"], arrays["firsts_P"]
            ), counts
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None  # not there, or damaged: made again


def _join(parts: list[NDArray[np.integer]], dtype: type[Number]) -> NDArray[Number]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _first(origins: list[str], count: int) -> str:
    more = f" and {count - len(origins)} more" if count > len(origins) else ""
    return ", ".join(origins) + more
