"""Whether a Hugging Face folder holds its config's weights, all finite, and a tokenizer that can be read."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from qwen3_model.checkpoints.fused import FusedLayout
from qwen3_model.checkpoints.hf_folder import INDEX_FILE, open_hf_tensors
from qwen3_model.checkpoints.model_weights import find_weights
from qwen3_model.checkpoints.rows import LazyTensor, from_file, row_windows
from qwen3_model.checkpoints.safetensors_file import FLOAT_DTYPES, open_safetensors
from qwen3_model.checkpoints.weight_files import NAME_MAP
from qwen3_model.command.files import is_file_name
from qwen3_model.command.json_file import read_json
from qwen3_model.command.progress import Progress
from qwen3_model.command.small_files import INDEX_BYTES
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import ConfigError, FormatError, WeightError
from qwen3_model.text.tokenizer import TOKENIZER_FILES, Qwen3Tokenizer

# Bits of the exponent; all ones mean NaN or infinity.
EXPONENT = {"BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000)}


def find_faults(directory: Path, *, quiet: bool = True) -> Iterator[str]:
    """Yield a sentence for everything that is wrong with `directory`; nothing when it is sound.

    Reads each tensor once, in pieces of a few megabytes.
    """
    try:
        config = Qwen3Config.from_dir(directory)
        tensors = {name: from_file(file, name) for name, file in open_hf_tensors(directory).items()}
        yield from find_weights(tensors, config, FusedLayout())[1]
        yield from find_tokenizer_faults(directory, config.vocab_size)
    except (ConfigError, FormatError, WeightError) as error:
        yield str(error)
        return
    total = sum(tensor.plan.size_bytes for tensor in tensors.values())
    with Progress("verify", total, "B", quiet=quiet) as progress:
        for name, tensor in tensors.items():
            if count := count_non_finite(tensor, progress.advance):
                where = next(tensor.rows.files())[0].path.name
                yield f"{name} in {where} has {count} values that are NaN or infinite"
    yield from find_index_faults(directory)


def find_index_faults(source: Path) -> Iterator[str]:
    """Yield a sentence where an index or a map of names states another size than its tensors have."""
    for path in [path for name in (INDEX_FILE, NAME_MAP) for path in sorted(source.rglob(name))]:
        try:
            index = read_json(path, INDEX_BYTES)
        except FormatError as error:
            yield str(error)
            continue
        metadata, names = index.get("metadata") or {}, index.get("weight_map")
        if not isinstance(metadata, dict) or "total_size" not in metadata:
            continue
        if not isinstance(names, dict) or not all(map(is_file_name, names.values())):
            yield f"{path} has no weight_map from tensors to files in its folder"
            continue
        if absent := sorted({name for name in names.values() if not (path.parent / name).is_file()}):
            yield f"{path} names files that are not there, such as {absent[0]}"
            continue
        files = {open_safetensors(path.parent / name) for name in set(names.values())}
        total = sum(info.size_bytes for file in files for info in file.tensors.values())
        if metadata["total_size"] != total:
            yield f"{path} states a total_size of {metadata['total_size']!r}, its tensors have {total} bytes"


def find_tokenizer_faults(directory: Path, num_rows: int) -> Iterator[str]:
    """Yield a sentence for everything that is wrong with the tokenizer's files, where there are some.

    Args:
        directory: The model's folder.
        num_rows: Rows of its embedding.
    """
    found = [name for name in TOKENIZER_FILES if (directory / name).is_file()]
    for name in found:
        if name.endswith(".json") and name != "tokenizer.json":
            try:
                read_json(directory / name, INDEX_BYTES)
            except FormatError as error:
                yield str(error)
    if "tokenizer.json" not in found:
        return
    try:
        tokenizer = Qwen3Tokenizer.from_dir(directory)
        if tokenizer.vocab_size > num_rows:
            yield (
                f"{directory / 'tokenizer.json'} has {tokenizer.vocab_size} tokens and the model's embedding "
                f"{num_rows} rows; they are of different models"
            )
        tokenizer.encode("A text, 文字.")
        if tokenizer.has_chat_template:
            tokenizer.apply_chat_template([{"role": "user", "content": "A text."}])
    except FormatError as error:
        yield str(error)


def count_non_finite(tensor: LazyTensor, count: Callable[[float], None] = lambda _: None) -> int:
    """Return how many elements of a tensor are NaN or infinite; `count` hears of the bytes that were read."""
    if tensor.plan.dtype not in FLOAT_DTYPES:
        return 0
    bad = 0
    for window in row_windows(tensor.rows):
        piece = np.ascontiguousarray(tensor.rows.read(*window))
        bad += count_not_finite(piece, tensor.plan.dtype)
        count(piece.nbytes)
    return bad


def is_finite(raw: np.ndarray, dtype: str) -> bool:
    """Return whether raw F32, F16 or BF16 data hold neither NaN nor infinity; allocates nothing."""
    unsigned, mask = EXPONENT[dtype]
    bits = np.ascontiguousarray(raw).view(unsigned)
    if not bits.size:
        return True
    # Among numbers of one sign, those with all bits of the exponent set are the largest.
    signed, sign = np.dtype(unsigned).str.replace("u", "i"), 1 << (8 * bits.itemsize - 1)
    return int(bits.view(signed).max()) < mask and int(bits.max()) < sign | mask


def count_not_finite(raw: np.ndarray, dtype: str) -> int:
    """Return how many elements of raw F32, F16 or BF16 data are NaN or infinite."""
    unsigned, mask = EXPONENT[dtype]
    return int(np.count_nonzero((raw.view(unsigned) & unsigned(mask)) == mask))
