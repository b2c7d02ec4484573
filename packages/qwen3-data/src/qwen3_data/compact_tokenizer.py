"""A compact copy of a tokenizer.json in the user's cache, which fastokens reads in four fifths of the time.

It says the same: one line instead of many, tokens sorted, each merge one string, "a b", instead of a pair.
The file `<sha256 of the original>-v2` holds two lines and the rest: the sha256 of all that follows; what the
original says beside its model, and the size of its vocabulary, as JSON; the compact tokenizer.json.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from qwen3_model.errors import Qwen3Error
from qwen3_model.files import write_atomically

VERSION = "v2"


@dataclass(frozen=True, slots=True)
class CompactTokenizer:
    """What the cache holds of one tokenizer."""

    head: dict[str, Any]
    """The original without its model."""
    vocab_size: int
    json: str
    """The compact tokenizer.json."""


def read_compact(cache_dir: Path, sha256: str) -> CompactTokenizer | None:
    """Return the copy of the tokenizer.json that has this sha256; None where there is no whole one."""
    try:
        raw = _path(cache_dir, sha256).read_bytes()
    except OSError:
        return None
    digest, _, rest = raw.partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        return None
    facts, _, compact = rest.partition(b"\n")
    parsed = orjson.loads(facts)
    return CompactTokenizer(parsed["head"], parsed["vocab_size"], compact.decode())


def write_compact(cache_dir: Path, sha256: str, parsed: dict[str, Any], vocab_size: int) -> None:
    """Keep a copy, unless the tokenizer has no compact form or the folder cannot be written.

    Args:
        cache_dir: Of the user; made where it is missing.
        sha256: Of the original's bytes.
        parsed: The original.
        vocab_size: Of the original, added tokens included.
    """
    compact = compact_json(parsed)
    if compact is None:
        return
    head = {key: value for key, value in parsed.items() if key != "model"}
    rest = orjson.dumps({"head": head, "vocab_size": vocab_size}) + b"\n" + compact
    whole = hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest
    try:
        write_atomically(_path(cache_dir, sha256), lambda temporary: temporary.write_bytes(whole))
    except (OSError, Qwen3Error):
        return  # a cache that cannot be written costs a tenth of a second per run, which no run may fail for


def compact_json(parsed: dict[str, Any]) -> bytes | None:
    """Return the compact form of a tokenizer.json; None where its merges cannot be written as strings."""
    merges = parsed["model"].get("merges")
    if parsed["model"].get("type") != "BPE" or not isinstance(merges, list):
        return None
    joined = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2:
            return None
        # A space inside of a part would make the string mean another pair.
        if not all(isinstance(part, str) and part and " " not in part for part in parts):
            return None
        joined.append(" ".join(parts))
    # In the order of their bytes, tokens go into the encoder's trees a little faster.
    vocab = dict(sorted(parsed["model"].get("vocab", {}).items()))
    return orjson.dumps({**parsed, "model": {**parsed["model"], "vocab": vocab, "merges": joined}})


def _path(cache_dir: Path, sha256: str) -> Path:
    return cache_dir / "tokenizers" / f"{sha256}-{VERSION}"
