"""What a token file was made of: the settings of its run, its share of a run, its part of a whole.

They stand in the manifest, so that `--resume` knows a finished output for its own, `merge` knows whether it
got every share, and counts stay true when a file is cut and joined again.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from qwen3_data.encode.tokenizer_facts import TokenizerFacts
from qwen3_data.input.sources import Source
from qwen3_data.runs.preprocess_settings import Settings
from qwen3_model.command.narrow import as_ints, as_section, at_key, build
from qwen3_model.errors import ConfigError, FormatError
from qwen3_model.text.tokens import MANIFEST_TYPES, Manifest, check_types, manifest_json, sibling

SHARE_NAME = re.compile(r"_(\d{5})-of-(\d{5})(?=_|$)")
NOT_OF_THE_RUN = ("shard", "inputs", "on-error", "rejects")
"""Settings in which the shares of one run may differ: inputs may be copies of other times and folders."""
ONE_TOKENIZER = ("tokenizer_sha256", "vocab_size", "eod_id", "eod_appended")
SUMS = ("num_documents", "num_sequences", "num_tokens", "num_skipped_records", "num_special_texts")
RESTORED = ("settings", "part", "num_skipped_records", "num_special_texts")
"""Fields of a whole's manifest that its parts cannot state."""
SHOWN = 5
Run = tuple[int, *tuple[str, ...]]
"""What tells a run of several shares from others: the number of its shares first."""


def run_settings(
    settings: Settings, sources: Sequence[Source], tokenizer: TokenizerFacts, dtype: str
) -> dict[str, object]:
    """Return all that decides what a run writes, by the names of its options."""
    facts = [[str(source.path), source.size_bytes, source.changed_ns] for source in sources]
    return {
        "inputs": _digest(facts),
        "input sizes": _digest([source.size_bytes for source in sources]),
        "tokenizer": tokenizer.sha256,
        "json-keys": list(settings.json_keys),
        "eod-token": tokenizer.eod_id,
        "append-eod": settings.append_eod,
        "split-sentences": settings.split_sentences,
        "keep-newlines": settings.keep_newlines,
        "allow-special": settings.allow_special,
        "dtype": dtype,
        "max-docs": settings.max_docs,
        "shard": [settings.shard_index, settings.num_shards],
        "on-error": settings.on_error,
        "rejects": settings.rejects is not None,
    }


def changed_settings(
    asked: Mapping[str, object], made: Mapping[str, object], num_skipped: int, *, finished: bool
) -> list[str]:
    """Return the options in which a run differs from the one that it would go on with.

    Records are only skipped with `--on-error skip`, and their list is written at the end of a run, so these
    two matter where a record was skipped.
    """
    changed = sorted(
        name for name in asked if name not in ("on-error", "rejects") and made.get(name) != asked[name]
    )
    if num_skipped and asked["on-error"] == "fail":
        changed.append("on-error")
    if finished and num_skipped and asked["rejects"] and not made.get("rejects"):
        changed.append("rejects")
    return changed


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def part_manifest(whole: Manifest, index: int, count: int, counts: Mapping[str, int]) -> Manifest:
    """Return the manifest of one of the parts that `split` makes of a file.

    Args:
        whole: Manifest of the whole file.
        index: Index of the part, from 0.
        count: Number of parts.
        counts: num_documents, num_sequences and num_tokens of the part.
    """
    restored = {name: getattr(whole, name) for name in RESTORED}
    identity = hashlib.sha256(manifest_json(whole).encode()).hexdigest()
    part = {"index": index, "of": count, "whole": restored | {"sha256": identity}}
    unknown = dict.fromkeys(("settings", "num_skipped_records", "num_special_texts"))
    return build(partial(replace, whole), {**counts, **unknown, "part": part})


def joint_manifest(
    prefixes: Sequence[Path], manifests: Sequence[Manifest | None], *, allow_incomplete: bool
) -> Manifest | None:
    """Return the manifest of files that are joined in this order; None where one of them has none.

    Raises:
        ConfigError: Shares of a run are missing, repeated, out of order or of different runs.
        FormatError: The files are of different tokenizers or end-of-document rules.
    """
    is_whole_run = _check_shares(prefixes, manifests, allow_incomplete=allow_incomplete)
    known = [manifest for manifest in manifests if manifest is not None]
    if len(known) < len(manifests):
        return None
    first = known[0]
    for prefix, manifest in zip(prefixes, known, strict=True):
        for name in ONE_TOKENIZER:
            if getattr(manifest, name) != getattr(first, name):
                raise FormatError(
                    f"{prefix} has {name} {getattr(manifest, name)}, but {prefixes[0]} has "
                    f"{getattr(first, name)}; only files of one tokenizer and end-of-document rule can be "
                    "merged"
                )
    changes: dict[str, object] = {name: _sum(getattr(one, name) for one in known) for name in SUMS}
    changes["sources"] = tuple(dict.fromkeys(source for one in known for source in one.sources))
    changes |= {"settings": None, "part": None, "version": max(one.version for one in known)}
    if is_whole_run and first.settings is not None:
        changes["settings"] = _settings_of_all([dict(one.settings or {}) for one in known])
    return build(partial(replace, first), {**changes, **_restore_whole(prefixes, known)})


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _settings_of_all(shares: list[dict[str, object]]) -> dict[str, object]:
    """Return the settings of the run that is not shared and writes the same."""
    joint = shares[0] | {"shard": [0, 1]}
    if any(share.get("inputs") != joint.get("inputs") for share in shares):
        joint["inputs"] = None
    joint["rejects"] = all(share.get("rejects") for share in shares)
    if any(share.get("on-error") == "skip" for share in shares):
        joint["on-error"] = "skip"
    return joint


def _restore_whole(prefixes: Sequence[Path], manifests: Sequence[Manifest]) -> dict[str, object]:
    """Return what the manifest of a whole said of which these are all parts in order; else nothing."""
    first = manifests[0].part
    if first is None or not {"index", "of", "whole"} <= first.keys() or first["of"] != len(manifests):
        return {}
    if [one.part for one in manifests] != [{**first, "index": index} for index in range(len(manifests))]:
        return {}
    path = sibling(prefixes[0], ".json")
    try:
        restored = at_key(first, "whole", _restored_fields)
    except FormatError as error:
        raise FormatError(f"{path}: part: {error}; split the whole again") from None
    check_types(restored, MANIFEST_TYPES, path)
    return restored


def _restored_fields(whole: object) -> dict[str, object]:
    stated = as_section(whole)
    return {name: at_key(stated, name, lambda value: value) for name in RESTORED}


def _check_shares(
    prefixes: Sequence[Path], manifests: Sequence[Manifest | None], *, allow_incomplete: bool
) -> bool:
    """Refuse an incomplete, repeated or mixed set of shares; return whether the files are one whole run."""
    runs: dict[Run, dict[int, Path]] = {}
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        share = _share_of(prefix, manifest)
        if share is None:
            continue
        run, index = share
        shares = runs.setdefault(run, {})
        if index in shares:
            raise ConfigError(
                f"{prefix} and {shares[index]} are both share {index} of {run[0]}; name each once"
            )
        if shares and index < max(shares):
            raise ConfigError(
                f"{prefix} is share {index} of {run[0]} and stands after share {max(shares)}; name the "
                "shares in order, so that the result is that of one run"
            )
        shares[index] = prefix
    broken = {run: shares for run, shares in runs.items() if len(shares) < run[0]}
    if broken and not allow_incomplete:
        raise ConfigError(_incomplete(broken))
    return len(runs) == 1 and not broken and sum(map(len, runs.values())) == len(prefixes)


def _share_of(prefix: Path, manifest: Manifest | None) -> tuple[Run, int] | None:
    """Return what tells a run of several shares from others, its number of shares first, and the share."""
    if manifest is not None and manifest.settings is not None:
        index, count = _stated_share(prefix, manifest.settings.get("shard") or (0, 1))
        same = {name: value for name, value in manifest.settings.items() if name not in NOT_OF_THE_RUN}
        names = [Path(source).name for source in manifest.sources]
        return ((count, _digest([same, names])), index) if count > 1 else None
    found = SHARE_NAME.search(prefix.name)
    if found is None:
        return None
    return (int(found[2]), str(prefix.parent), SHARE_NAME.sub("", prefix.name)), int(found[1])


def _stated_share(prefix: Path, shard: object) -> tuple[int, int]:
    try:
        index, count = as_ints(shard)
    except (FormatError, ValueError):
        index, count = -1, 0
    if not 0 <= index < count:
        raise FormatError(
            f"{sibling(prefix, '.json')}: settings: shard is {shard!r:.40}, not the index of a share and "
            "their number; preprocess again or remove the manifest"
        )
    return index, count


def _incomplete(broken: Mapping[Run, Mapping[int, Path]]) -> str:
    if len(broken) > 1:
        (one, first), (other, second) = list(broken.items())[:2]
        return (
            f"{next(iter(first.values()))} is a share of {one[0]} and {next(iter(second.values()))} one of "
            f"{other[0]}, of runs with different inputs or settings, and neither is complete; merge the "
            "shares of one run, or pass --allow-incomplete"
        )
    ((run, shares),) = broken.items()
    missing = list(itertools.islice((str(index) for index in range(run[0]) if index not in shares), SHOWN))
    num_missing = run[0] - len(shares)
    more = f" and {num_missing - SHOWN} more" if num_missing > SHOWN else ""
    return (
        f"of {run[0]} shares of a run, {', '.join(missing)}{more} are missing beside "
        f"{next(iter(shares.values()))}; run preprocess with --shard-index {missing[0]} "
        f"--num-shards {run[0]}, or pass --allow-incomplete"
    )
