"""Token files of a run, checked against its model and indexed; free of MindSpore."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from qwen3_model.command.small_files import INDEX_BYTES, read_small
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.text.tokens import Manifest, TokenFile, open_tokens, read_manifest
from qwen3_train.data.batches import Dataset, foreign_id
from qwen3_train.data.gpt_dataset import DocumentOptions, Wanted, build_dataset, index_share
from qwen3_train.data.index_cache import Room, cached, identity
from qwen3_train.data.run_data import RunData
from qwen3_train.settings.blend import Blend
from qwen3_train.settings.run import TrainSettings
from qwen3_train.settings.token_files import DataSettings

FINGERPRINT_BYTES = 1 << 20
"""Bytes at either end of a token file that its fingerprint reads, besides all document lengths."""
SCAN_LIMIT_BYTES = 2 << 30
"""Token files without manifest are searched for ids of no row up to here; later ones are met step by step."""
LENGTHS_BLOCK = 1 << 20
"""Document lengths hashed at once."""
SCAN_BLOCK = 1 << 24
"""Ids looked at at once."""


def prepare_tokens(settings: TrainSettings, data: DataSettings, notes: list[str]) -> RunData:
    """Open, check and index the token files that `data` describes; `notes` gets sentences for the log.

    Raises:
        ConfigError, FormatError: Files, settings and model do not fit each other.
    """
    options = _document_options(settings, data, notes)
    train, valid = _datasets(settings, data)
    return RunData(
        train=train,
        valid=valid,
        num_valid=0 if valid is None else min(len(valid), data.num_valid or len(valid)),
        options=options,
        eos_id=options.eod,
        stop_ids=(),
        fingerprint=lambda global_batch: _fingerprint(data, global_batch),
    )


def _document_options(settings: TrainSettings, data: DataSettings, notes: list[str]) -> DocumentOptions:
    manifests = []
    for prefix in _prefixes(settings, data):
        tokens, manifest = open_tokens(Path(prefix), checks=False), read_manifest(Path(prefix))
        if manifest is None:
            notes.append(
                f"{prefix} has no manifest (.json), so its tokenizer and end-of-document id are not checked"
            )
            _check_ids(tokens, prefix, settings.model.vocab_size, data.pad)
        else:
            _check_manifest(manifest, prefix, settings, data)
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


def _check_manifest(manifest: Manifest, prefix: str, settings: TrainSettings, data: DataSettings) -> None:
    if manifest.vocab_size > settings.model.vocab_size:
        raise ConfigError(
            f"{prefix} was made with {manifest.tokenizer_name}, a vocabulary of {manifest.vocab_size}, "
            f"but the model has vocab_size={settings.model.vocab_size}; use data of the model's "
            "tokenizer or raise vocab_size"
        )
    tokenizer = settings.hf_dir / "tokenizer.json" if settings.hf_dir else None
    if tokenizer is not None and tokenizer.is_file():
        digest = hashlib.sha256(read_small(tokenizer, INDEX_BYTES)).hexdigest()
        if manifest.tokenizer_sha256 and manifest.tokenizer_sha256 != digest:
            raise ConfigError(
                f"{prefix} was made with another tokenizer ({manifest.tokenizer_name}) than {tokenizer}; "
                "preprocess the data with the model's own"
            )
    if data.eod is not None and data.eod != manifest.eod_id:
        raise ConfigError(
            f"eod={data.eod} but documents of {prefix} end with {manifest.eod_id}; set "
            f"--train_dataset.data_loader.config.eod {manifest.eod_id} or leave it out"
        )


def _check_ids(tokens: TokenFile, prefix: str, vocab_size: int, pad: int) -> None:
    ids = tokens.ids[: SCAN_LIMIT_BYTES // tokens.dtype.itemsize]
    for first in range(0, len(ids), SCAN_BLOCK):
        block = ids[first : first + SCAN_BLOCK]
        if foreign_id(block, vocab_size) is None:
            continue
        # Padding needs no row: it is taken for 0 and carries no loss.
        if (foreign := foreign_id(block[block != pad], vocab_size)) is not None:
            raise ConfigError(
                f"{prefix}.bin holds id {foreign}, but the model has vocab_size={vocab_size}; use data of "
                "the model's tokenizer or raise vocab_size"
            )


def index_share_of_run(settings: TrainSettings, number: int, of: int) -> None:
    """Make the indexes of every `of`-th token file of a run, where it keeps them; see `index_share`."""
    data = settings.data
    if isinstance(data, DataSettings) and data.cache is not None:
        samples = Wanted(
            blend=data.train, split=data.split, part="train", seq_length=data.seq_length,
            num_samples=data.num_train, seed=data.seed, cache=data.cache,
        )  # fmt: skip
        index_share(samples, number, of)


def _datasets(settings: TrainSettings, data: DataSettings) -> tuple[Dataset, Dataset | None]:
    """Return the samples to train on, and those to evaluate on where the run evaluates."""
    build = partial(
        build_dataset, split=data.split, seq_length=data.seq_length, seed=data.seed, cache=data.cache
    )
    train = build(data.train, part="train", num_samples=data.num_train)
    if train is None or len(train) == 0:
        raise ConfigError(f"split={data.split!r} leaves nothing to train on")
    if not settings.do_eval:
        return train, None
    if data.valid is None:
        raise ConfigError(
            f"do_eval=True but split={data.split!r} leaves no valid part; use for example split: '95, 5, 0'"
        )
    return train, build(data.valid, part="valid", num_samples=data.num_valid)


def _fingerprint(data: DataSettings, global_batch: int | None) -> str:
    """Hash what decides which tokens each step sees; not the paths, so that data may move.

    All document lengths count, which is why a cache keeps it for those who start later.
    """

    def make(room: Room) -> None:
        hexadecimal = _hash(data, global_batch)
        room.lay_out({"fingerprint": (np.uint32, (2,))})
        room.put("fingerprint", 0, np.array([int(hexadecimal[:8], 16), int(hexadecimal[8:], 16)]))

    facts: tuple[object, ...] = ()
    if data.cache is not None:
        bins = [Path(f"{prefix}.bin").stat() for prefix in data.train.prefixes]
        of_files = [identity(Path(prefix)) for prefix in data.train.prefixes]
        facts = ("fingerprint", of_files, [(each.st_size, each.st_mtime_ns) for each in bins])
        facts += _facts(data, global_batch)
    upper, lower = cached(data.cache, facts, make)["fingerprint"].tolist()
    return f"{upper:08x}{lower:08x}"


def _facts(data: DataSettings, global_batch: int | None) -> tuple[object, object]:
    facts = (data.train.weights, data.split, data.seq_length, data.num_train, data.seed, global_batch)
    return facts, (data.pad, data.eod_mask_loss, data.reset_position_ids, data.separate_documents)


def _hash(data: DataSettings, global_batch: int | None) -> str:
    digest = hashlib.sha256()
    for prefix in data.train.prefixes:
        lengths = open_tokens(Path(prefix), checks=False).sequence_lengths
        for first in range(0, len(lengths), LENGTHS_BLOCK):
            digest.update(np.ascontiguousarray(lengths[first : first + LENGTHS_BLOCK]).data)
        _hash_ends(Path(f"{prefix}.bin"), digest.update)
    digest.update(repr(_facts(data, global_batch)).encode())
    return digest.hexdigest()[:16]


def _hash_ends(path: Path, update: Callable[[bytes], None]) -> None:
    size = path.stat().st_size
    update(str(size).encode())
    with path.open("rb") as file:
        update(file.read(FINGERPRINT_BYTES))
        file.seek(max(0, size - FINGERPRINT_BYTES))
        update(file.read(FINGERPRINT_BYTES))


def _prefixes(settings: TrainSettings, data: DataSettings) -> list[str]:
    blends: list[Blend] = [data.train]
    if settings.do_eval and data.valid is not None:
        blends.append(data.valid)
    prefixes = list(dict.fromkeys(prefix for blend in blends for prefix in blend.prefixes))
    for prefix in prefixes:
        if prefix.endswith((".bin", ".idx")):
            raise FormatError(f"{prefix}: give the path without .bin or .idx, as {prefix[:-4]}")
    return prefixes
