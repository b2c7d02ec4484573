"""What `preprocess` does while the encoder loads, and after."""

import errno
import time
from dataclasses import dataclass, field
from pathlib import Path

from qwen3_data.encode.engines import Encoders
from qwen3_data.encode.tokenizer_facts import TokenizerFile
from qwen3_data.input.shares import find_share
from qwen3_data.input.sources import Source
from qwen3_data.runs.encode_run import RESUME_FORMAT, EncodeRun, Totals, output_names
from qwen3_data.runs.preprocess_settings import Settings
from qwen3_data.runs.provenance import changed_settings, run_settings
from qwen3_data.write.token_writer import choose_dtype
from qwen3_data.write.workspace import Workspace, check_rejects, refuse_existing_outputs, refuse_inputs
from qwen3_model.command.files import write_text_atomically
from qwen3_model.command.narrow import as_int, as_section
from qwen3_model.errors import ConfigError, Qwen3Error
from qwen3_model.text.tokens import Manifest, read_manifest, sibling


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
        settings: The run's settings.
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
    asked = run_settings(settings, sources, tokenizer, str(dtype))
    resumes = settings.resume and Workspace.has_progress(prefix)
    if settings.resume and not resumes:
        manifests = _find_finished(outputs, asked, force=settings.force)
        if manifests is not None:
            Workspace.sweep(prefix)
            if settings.rejects is not None and not settings.rejects.exists():
                _write_no_rejects(settings.rejects, manifests[0])
            totals = Totals(
                num_documents=manifests[0].num_documents, num_tokens=sum(one.num_tokens for one in manifests)
            )
            return Result(outputs, totals, "", 0.0, was_done=True)
    if not resumes:
        refuse_existing_outputs(outputs, force=settings.force)
    check_rejects(settings.rejects, may_exist=settings.force or resumes)
    workspace = Workspace(prefix, force=settings.force, resume=settings.resume)
    try:
        _check_same_run(workspace, asked)
        run = EncodeRun(settings, sources, tokenizer, share, workspace, asked, encoders)
        run.execute()
    except BaseException as error:
        kept = workspace.leave()
        raise (_with_hint(error) if kept else error) from None
    workspace.remove()
    return Result(outputs, run.totals, run.engine_name, time.monotonic() - started_s, busy_s=run.busy_s)


def _write_no_rejects(rejects: Path, manifest: Manifest) -> None:
    if manifest.num_skipped_records:
        raise ConfigError(
            f"{rejects} is gone, and the finished output does not hold the skipped records; pass --force "
            "without --resume to make both anew"
        )
    write_text_atomically(rejects, "")


def _check_same_run(workspace: Workspace, asked: dict[str, object]) -> None:
    if workspace.progress is None:
        return
    if workspace.progress.get("format") == RESUME_FORMAT:
        made, totals = as_section(workspace.progress["run"]), as_section(workspace.progress["totals"])
        changed = changed_settings(asked, made, as_int(totals["num_skipped"]), finished=False)
    else:
        changed = ["version of qwen3-data"]
    if changed:
        raise ConfigError(
            f"the interrupted run in {workspace.folder} had another {', '.join(changed)}; resume it with the "
            "same, or pass --force without --resume to begin anew"
        )


def _find_finished(outputs: list[Path], asked: dict[str, object], *, force: bool) -> list[Manifest] | None:
    """Return the manifests of finished outputs of this run; None where they are missing or do not tell.

    Raises:
        ConfigError: They were made with other settings or inputs, and `force` is false.
    """
    found = []
    for output in outputs:
        index = sibling(output, ".idx")
        manifest = read_manifest(output) if index.exists() else None
        if manifest is None or manifest.settings is None:
            return None
        skipped = manifest.num_skipped_records or 0
        changed = changed_settings(asked, manifest.settings, skipped, finished=True)
        if changed and force:
            return None
        if changed:
            raise ConfigError(
                f"{output} already exists and was made with another {', '.join(changed)}; choose another "
                "output, or pass --force to replace it"
            )
        found.append(manifest)
    return found


def _with_hint(error: BaseException) -> BaseException:
    hint = "what was finished is kept, and --resume goes on with it"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Qwen3Error(f"no space left on the device; make room: {hint}")
    if isinstance(error, Qwen3Error) and not isinstance(error, ConfigError):
        return type(error)(f"{error}; {hint}")
    return error
