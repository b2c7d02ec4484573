"""Records to training samples: encoded, cut, packed, and kept on disk under a hash of all that made them."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_model.conversations import ConversationError
from qwen3_model.errors import FormatError
from qwen3_model.files import write_atomically
from qwen3_model.packing import ChatSample, Packer
from qwen3_model.progress import Progress
from qwen3_model.tokenizer import Qwen3Tokenizer
from qwen3_train.data.chat_encoding import QwenChat, VicunaPrompt, encode_conversations
from qwen3_train.data.hf_records import load_records, read_rows
from qwen3_train.data.sft_dataset import SftSamples
from qwen3_train.settings.hf_loader import LOADER, ChatSettings, HfDataSettings

CACHE_VERSION = 1
"""Raised whenever the same records would give other samples."""
BLOCK_RECORDS = 1000
SHOWN = 3
"""Records that a sentence names."""


@dataclass(slots=True)
class SampleCounts:
    """What became of the records."""

    num_samples: int = 0
    num_truncated: int = 0
    dropped: list[str] = field(default_factory=list)
    """Each conversation whose answer lies beyond the sequence length."""
    bad: list[str] = field(default_factory=list)
    """Each record that was skipped, and why."""

    def notes(self, seq_length: int) -> list[str]:
        """Return what a user must know, as sentences."""
        notes = []
        if self.dropped:
            notes.append(
                f"{len(self.dropped)} conversations are left out, since no token to learn lies within "
                f"seq_length {seq_length}: {_first(self.dropped)}"
            )
        if self.num_truncated:
            notes.append(f"{self.num_truncated} conversations are cut to seq_length {seq_length}")
        if self.bad:
            notes.append(f"{len(self.bad)} records are skipped: {_first(self.bad)}")
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
    if (held := _read_cache(cache)) is not None:
        samples, counts = held
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
    records: Any,
    chat: ChatSettings,
    tokenizer: Qwen3Tokenizer,
    counts: SampleCounts,
    progress: Progress,
) -> Iterator[ChatSample]:
    style = VicunaPrompt(tokenizer) if chat.prompt_style == "vicuna" else QwenChat(tokenizer, chat)
    places: list[str] = []
    waiting: list[list[Any]] = []
    for number, record in enumerate(read_rows(records)):
        try:
            found = style.stretches(record)
        except ConversationError as error:
            if chat.on_bad_record == "fail":
                raise FormatError(
                    f"{LOADER}: record {number} {error}; mend it, or set on_bad_record: skip in its handler"
                ) from error
            counts.bad.append(f"record {number} {error}")
            continue
        waiting += found
        places += [f"record {number}"] * len(found)
        if len(waiting) >= BLOCK_RECORDS:
            yield from _fit(encode_conversations(style, waiting), places, chat, counts)
            waiting, places = [], []
            progress.advance(number + 1 - progress.done)
    yield from _fit(encode_conversations(style, waiting), places, chat, counts)
    progress.advance(len(records) - progress.done)


def _fit(
    samples: list[ChatSample], places: list[str], chat: ChatSettings, counts: SampleCounts
) -> Iterator[ChatSample]:
    """Cut samples to the sequence length and leave out those with nothing to learn in it."""
    limit = chat.seq_length
    for sample, place in zip(samples, places, strict=True):
        fitted, length = sample, len(sample.ids_L)
        if length > limit and chat.pack_strategy != "truncate":
            # The first token of a row is predicted from nothing.
            if chat.too_long == "drop" or not sample.mask_L[1:limit].any():
                counts.dropped.append(f"{place} ({length} tokens)")
                continue
            counts.num_truncated += 1
            fitted = ChatSample(sample.ids_L[:limit], sample.mask_L[:limit])
        counts.num_samples += 1
        yield fitted


def _key(records: Any, chat: ChatSettings, tokenizer: Qwen3Tokenizer) -> str:
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
        with np.load(path) as held:
            counts = SampleCounts(**json.loads(str(held["counts"])))
            return SftSamples(held["ids_T"], held["mask_T"], held["lengths_S"], held["firsts_P"]), counts
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: made again


def _join(parts: list[Any], dtype: type) -> Any:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _first(places: list[str]) -> str:
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return ", ".join(places[:SHOWN]) + more
