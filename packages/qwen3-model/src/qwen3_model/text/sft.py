"""Instruction data: conversations as token files with a loss mask, packed or not.

docs/formats/sft.md describes the files.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_model.command.file_map import map_file
from qwen3_model.command.json_file import read_json
from qwen3_model.command.narrow import as_texts, build
from qwen3_model.errors import FormatError
from qwen3_model.text.tokens import TokenFile, check_types, open_tokens, sibling

SFT_VERSION = 2
"""Version 1 lacks `thoughts`, which were what the template left of them."""
KIND = "sft"
MANIFEST_TYPES: Mapping[str, tuple[type, ...]] = {
    "kind": (str,), "tokenizer_name": (str,), "tokenizer_sha256": (str,), "template_sha256": (str,),
    "packed": (bool,), "loss_on": (str,), "empty_think": (str,), "thoughts": (str,), "sources": (list,),
}  # fmt: skip
"""JSON types of the manifest's fields; the others are int."""
IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class SftManifest:
    """What made an instruction data file; stands beside it as `<prefix>.json`."""

    kind: str
    """Always "sft"."""
    version: int
    tokenizer_name: str
    tokenizer_sha256: str
    template_sha256: str
    """SHA-256 of the chat template's text."""
    vocab_size: int
    seq_length: int
    """No pack is longer."""
    packed: bool
    loss_on: str
    """"all" or "last": the assistant's turns that carry loss."""
    empty_think: str
    """"train" or "mask": whether an empty thought before an answer carries loss."""
    thoughts: str
    """"keep", "split" or "template": what became of the thoughts of answers before the last."""
    num_packs: int
    num_samples: int
    num_tokens: int
    num_loss_tokens: int
    num_truncated: int
    """Samples cut to `seq_length`."""
    num_dropped: int
    """Samples left out because no token with loss fits into `seq_length`."""
    num_skipped_records: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SftFile:
    """Open instruction data: sequences are conversations, documents are packs."""

    tokens: TokenFile
    mask_T: NDArray[np.uint8]
    """1 for each token of `tokens.ids` that is to be predicted, else 0."""
    manifest: SftManifest

    def __len__(self) -> int:
        return self.tokens.num_documents

    def pack(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Return ids, labels and conversation lengths of a pack.

        Labels stand at the index of their token, unshifted: the label of position t is token t or -100. What
        predicts token t + 1 from token t shifts them once.

        Shapes: ids and labels (tokens of the pack,), lengths (conversations,).
        """
        first, last = self.tokens.document_indices[index : index + 2]
        lengths = self.tokens.sequence_lengths[first:last]
        begin = int(self.tokens.pointers[first]) // self.tokens.dtype.itemsize
        part = slice(begin, begin + int(lengths.sum()))
        ids_L = self.tokens.ids[part].astype(np.int32)
        labels_L = np.where(self.mask_T[part] == 1, ids_L, np.int32(IGNORED_LABEL))
        return ids_L, labels_L, lengths.astype(np.int32)


def open_sft(prefix: Path) -> SftFile:
    """Map the instruction data `<prefix>.bin`, `.idx`, `.mask` and `.json`.

    Raises:
        FormatError: A file is missing or damaged, or they are of different runs.
    """
    manifest = read_sft_manifest(sibling(prefix, ".json"))
    tokens = open_tokens(prefix)
    path = sibling(prefix, ".mask")
    if not path.is_file():
        raise FormatError(f"{path} is missing; make the instruction data again with qwen3-data sft")
    found = (tokens.num_documents, len(tokens.sequence_lengths), tokens.num_tokens, path.stat().st_size)
    stated = (manifest.num_packs, manifest.num_samples, manifest.num_tokens, manifest.num_tokens)
    if found != stated:
        raise FormatError(
            f"{prefix}: packs, samples, tokens and mask bytes are {found}, but the manifest says {stated}; "
            "the files are of different runs, so make them again"
        )
    return SftFile(tokens, map_file(path, manifest.num_tokens), manifest)


def read_sft_manifest(path: Path) -> SftManifest:
    """Read the manifest of instruction data.

    Raises:
        FormatError: It is missing, damaged, of another kind or of a newer version.
    """
    if not path.is_file():
        raise FormatError(f"{path} is missing; make the instruction data again with qwen3-data sft")
    raw = read_json(path, remedy="make the instruction data again")
    if raw.get("kind") != KIND:
        raise FormatError(f"{path} is no manifest of instruction data")
    if raw.get("version") not in range(1, SFT_VERSION + 1):
        raise FormatError(
            f"{path} has version {raw.get('version')}; this program reads up to {SFT_VERSION}, so update it"
        )
    if raw["version"] == 1:
        raw = {"thoughts": "template"} | raw
    names = {field.name for field in dataclasses.fields(SftManifest)}
    if raw.keys() != names:
        raise FormatError(
            f"{path} lacks {sorted(names - raw.keys())} and has the unknown {sorted(raw.keys() - names)}"
        )
    check_types(raw, MANIFEST_TYPES, path)
    return build(SftManifest, {**raw, "sources": tuple(as_texts(raw["sources"]))})
