"""Is a checkpoint whole and sound? Headers, sizes, index, shapes, numbers, and a manifest of hashes."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from qwen3_ckpt.sources.placements import ADAPTER, bare_name
from qwen3_model.checkpoints.adapter_config import CONFIG_FILE
from qwen3_model.checkpoints.adapters import read_peft
from qwen3_model.checkpoints.companions import find_companions
from qwen3_model.checkpoints.model_weights import model_weights
from qwen3_model.checkpoints.safetensors_file import open_safetensors
from qwen3_model.checkpoints.verify import count_non_finite, find_index_faults, find_tokenizer_faults
from qwen3_model.checkpoints.weight_files import ADAPTER_FILE, open_checkpoint
from qwen3_model.command.files import is_file_name, write_text_atomically
from qwen3_model.command.json_file import read_json
from qwen3_model.command.small_files import INDEX_BYTES
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import FormatError, Qwen3Error

MANIFEST = "sha256.json"
HASH_BYTES = 8 << 20


def find_faults(source: Path, count: Callable[[float], None]) -> Iterator[str]:
    """Yield a sentence for each fault of `source`; `count` hears of the bytes that were read.

    Every file's header is read first; damaged ones are named, and end the search.
    """
    damaged = list(_damaged_files(source))
    yield from damaged
    if damaged:
        return
    try:
        tensors = open_checkpoint(source).tensors
        companions = find_companions(source)
        if (source / CONFIG_FILE).is_file() and (source / ADAPTER_FILE).is_file():
            read_peft(source)
        elif companions and not all(ADAPTER.fullmatch(bare_name(name)) for name in tensors):
            model_weights(tensors, Qwen3Config.from_dir(companions))
    except Qwen3Error as error:
        yield str(error)
        return
    for name, tensor in tensors.items():
        if bad := count_non_finite(tensor, count):
            yield f"{name} has {bad} values that are NaN or infinite"
    yield from find_index_faults(source)
    if companions:
        yield from find_tokenizer_faults(companions, Qwen3Config.from_dir(companions).vocab_size)
    yield from manifest_faults(source)


def _damaged_files(source: Path) -> Iterator[str]:
    for path in _weights_files(source) if source.is_dir() else [source]:
        try:
            open_safetensors(path)
        except FormatError as error:
            yield str(error)


def write_manifest(source: Path) -> Path:
    """Write `sha256.json` with the hash of every weights file at or below `source`; return its path."""
    path = _folder(source) / MANIFEST
    hashes = {str(file.relative_to(path.parent)): hash_file(file) for file in _weights_files(path.parent)}
    write_text_atomically(path, json.dumps(hashes, indent=2) + "\n")
    return path


def manifest_faults(source: Path) -> Iterator[str]:
    """Yield a sentence for each file that differs from the manifest, when there is one."""
    path = _folder(source) / MANIFEST
    if not path.is_file():
        return
    hashes = read_json(path, INDEX_BYTES)
    for name, expected in sorted(hashes.items()):
        if not all(map(is_file_name, name.split("/"))):
            raise FormatError(f"{path} is no manifest: {name:.80} is outside of its folder")
        file = path.parent / name
        if not file.is_file():
            yield f"{file} is in {MANIFEST} but not there"
        elif hash_file(file) != expected:
            yield f"{file} has another sha256 than {MANIFEST} says"
    for file in _weights_files(path.parent):
        if str(file.relative_to(path.parent)) not in hashes:
            yield f"{file} is not in {MANIFEST}"


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _weights_files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*.safetensors") if path.is_file())
    return sorted(
        path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
