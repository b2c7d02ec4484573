"""What `preprocess` does while the encoder loads, and after."""

import errno
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_data.encode_run import EncodeRun, Totals, output_names
from qwen3_data.engines import Encoders
from qwen3_data.preprocess import Settings
from qwen3_data.shares import find_share
from qwen3_data.sources import Source
from qwen3_data.token_writer import choose_dtype
from qwen3_data.tokenizer_facts import TokenizerFacts, TokenizerFile
from qwen3_data.workspace import Workspace, check_rejects, refuse_existing_outputs, refuse_inputs
from qwen3_model.errors import ConfigError, Qwen3Error
from qwen3_model.tokens import Manifest, read_idx_header, read_manifest, sibling


@dataclass(slots=True)
class Result:
    """What a run wrote."""

    prefixes: list[Path]
    totals: Totals
    engine: str
    seconds: float
    was_done: bool = False
    """`--resume` found the output whole."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """Working time of each stage; stages overlap."""


def run_preprocess(
    settings: Settings, sources: list[Source], file: TokenizerFile, encoders: Encoders, started_s: float
) -> Result:
    """Check what remains to be checked, encode the inputs and write the token files.

    Args:
        settings: Of the run.
        sources: The input files.
        file: The tokenizer.
        encoders: They may still be loading.
        started_s: When the run began (time.monotonic).

    Raises:
        Qwen3Error: Anything that cannot work; no output is left then.
    """
    tokenizer = file.facts(settings.eod_token)
    dtype = choose_dtype(settings.dtype, tokenizer.vocab_size)
    share = find_share(sources, settings.shard_index, settings.num_shards)
    prefix = share.name_of(settings.output_prefix)
    outputs = [
        prefix.with_name(name)
        for name in output_names(prefix, settings.json_keys, sentences=settings.split_sentences)
    ]
    refuse_inputs(sources, outputs, settings.rejects)
    resumes = settings.resume and Workspace.has_progress(prefix)
    if settings.resume and not resumes:
        manifests = _finished(outputs, settings, sources, tokenizer, dtype)
        if manifests is not None:
            Workspace.sweep(prefix)
            totals = Totals(
                num_documents=manifests[0].num_documents, num_tokens=sum(one.num_tokens for one in manifests)
            )
            return Result(outputs, totals, "", 0.0, was_done=True)
    if not resumes:
        refuse_existing_outputs(outputs, force=settings.force)
    check_rejects(settings.rejects, may_exist=settings.force or resumes)
    workspace = Workspace(prefix, force=settings.force, resume=settings.resume)
    run_key = _run_key(settings, sources, tokenizer)
    try:
        _check_same_run(workspace, run_key)
        run = EncodeRun(settings, sources, tokenizer, share, workspace, run_key, encoders)
        run.execute()
    except BaseException as error:
        kept = workspace.leave()
        raise (_with_hint(error) if kept else error) from None
    workspace.remove()
    return Result(outputs, run.totals, run.engine_name, time.monotonic() - started_s, busy_s=run.busy_s)


def _run_key(settings: Settings, sources: list[Source], tokenizer: TokenizerFacts) -> dict[str, Any]:
    """Return what must not change when a run is resumed, for its bytes to be those of an unbroken run."""
    return {
        "format of the resume point": 2,
        "input": [[str(source.path), source.size_bytes, source.changed_ns] for source in sources],
        "tokenizer": tokenizer.sha256,
        "json-keys": list(settings.json_keys),
        "eod-token": tokenizer.eod_id if settings.append_eod else None,
        "split-sentences": [settings.split_sentences, settings.keep_newlines],
        "allow-special": settings.allow_special,
        "dtype": settings.dtype,
        "max-docs": settings.max_docs,
        "shard": [settings.shard_index, settings.num_shards],
    }


def _check_same_run(workspace: Workspace, run_key: dict[str, Any]) -> None:
    if workspace.progress is None:
        return
    changed = sorted(key for key, value in run_key.items() if workspace.progress["run"].get(key) != value)
    if changed:
        raise ConfigError(
            f"the interrupted run in {workspace.folder} had another {', '.join(changed)}; resume it with the "
            "same, or pass --force without --resume to begin anew"
        )


def _finished(
    outputs: list[Path],
    settings: Settings,
    sources: list[Source],
    tokenizer: TokenizerFacts,
    dtype: np.dtype[Any],
) -> list[Manifest] | None:
    """Return the manifests of outputs that are what this run would make, or None, as far as files tell."""
    newest_ns = max(source.changed_ns for source in sources)
    names = tuple(source.name for source in sources)
    wanted = (names, tokenizer.sha256, settings.append_eod, tokenizer.eod_id)
    found = []
    for output in outputs:
        index = sibling(output, ".idx")
        if not index.exists() or index.stat().st_mtime_ns < newest_ns:
            return None
        manifest = read_manifest(output)
        if manifest is None or read_idx_header(index)[0] != dtype:
            return None
        told = (manifest.sources, manifest.tokenizer_sha256, manifest.eod_appended, manifest.eod_id)
        if told != wanted:
            return None
        found.append(manifest)
    return found


def _with_hint(error: BaseException) -> BaseException:
    hint = "what was finished is kept, and --resume goes on with it"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Qwen3Error(f"no space left on the device; make room: {hint}")
    if isinstance(error, Qwen3Error) and not isinstance(error, ConfigError):
        return type(error)(f"{error}; {hint}")
    return error
