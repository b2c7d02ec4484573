"""The folder of a run: what may be in it before, and what describes the model beside the checkpoints."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qwen3_model.command.files import write_atomically, write_text_atomically
from qwen3_model.command.json_file import read_json
from qwen3_model.config import Qwen3Config
from qwen3_model.errors import OutputExistsError
from qwen3_model.text.tokenizer import TOKENIZER_FILES

METRICS = "metrics.jsonl"
RESOLVED_CONFIG = "run.yaml"
STARTS = "starts.jsonl"
"""A JSON object for each start of the run: when, where, with what, by which command."""
BEST = "best"
"""Folder of the checkpoint with the lowest eval_loss, which is a run's folder itself."""
REPLACED = ".replaced"
"""Where `--force` keeps the run before until the new one has a checkpoint of its own."""
LOCK = ".lock"
"""Locked, and with the number of its process within, while a run writes to the folder."""
ARTEFACTS = (
    "checkpoint",
    "best",
    "strategy",
    METRICS,
    RESOLVED_CONFIG,
    STARTS,
    "config.json",
    "adapter_config.json",
    "events",
)


def refuse_used_folder(output_dir: Path, *, force: bool, resume: bool) -> None:
    """Raise OutputExistsError when `output_dir` holds a run that is neither replaced nor resumed."""
    if force or resume:
        return
    artefacts = [name for name in ARTEFACTS if _has_content(output_dir / name)]
    if artefacts and not _is_failed_start(output_dir):
        raise OutputExistsError(
            f"{output_dir} holds a run already ({', '.join(artefacts)}); choose another --output_dir, "
            "continue it with --resume_training auto, or pass --force to replace it"
        )


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _is_failed_start(output_dir: Path) -> bool:
    """Return whether a start of a run has left its description alone: no step and no checkpoint."""
    metrics = output_dir / METRICS
    has_steps = metrics.exists() and metrics.stat().st_size > 0
    return (output_dir / RESOLVED_CONFIG).is_file() and not has_steps and not _has_checkpoint(output_dir)


def refuse_live_run(output_dir: Path) -> None:
    """Raise OutputExistsError when a process of this machine is running in `output_dir`."""
    if (output_dir / LOCK).exists():
        os.close(_lock_folder(output_dir))


@contextmanager
def only_run(output_dir: Path) -> Iterator[None]:
    """Keep other starts of a run out of `output_dir`.

    The lock goes with the process, however it dies; a child that is forked within the block keeps it.

    Raises:
        OutputExistsError: Another process has it.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = _lock_folder(output_dir)
    try:
        os.pwrite(lock, f"{os.getpid():<10}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def _lock_folder(output_dir: Path) -> int:
    """Return the file descriptor that holds the folder's lock."""
    lock = os.open(output_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 20, 0).decode(errors="replace").strip()
        os.close(lock)
        raise OutputExistsError(
            f"a run is going on in {output_dir} (started by process {owner}); wait for its end, or choose "
            "another --output_dir"
        ) from None
    except OSError:
        pass  # file systems of some clusters have no locks
    return lock


@contextmanager
def replaced_run(output_dir: Path) -> Iterator[None]:
    """Put the run in `output_dir` aside while a new one starts.

    When the block ends it is removed, or brought back if the new run has no checkpoint of its own.
    """
    restore_replaced(output_dir)
    aside = output_dir / REPLACED
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir(parents=True)
    _move(output_dir, aside)
    try:
        yield
    finally:
        if not _has_checkpoint(output_dir):
            _move(aside, output_dir)
        shutil.rmtree(aside, ignore_errors=True)


def restore_replaced(output_dir: Path) -> None:
    """Bring back the run that a killed `--force` had put aside, unless a newer one has a checkpoint."""
    aside = output_dir / REPLACED
    if _has_checkpoint(aside) and not _has_checkpoint(output_dir):
        _move(aside, output_dir)


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoint/rank_*/*.safetensors"))


def _move(source: Path, target: Path) -> None:
    for name in ARTEFACTS:
        if (source / name).exists():
            if (target / name).is_dir():
                shutil.rmtree(target / name)
            (source / name).replace(target / name)


def write_model_files(
    output_dir: Path,
    config: Qwen3Config,
    hf_dir: Path | None,
    *,
    tokenizer_dir: Path | None = None,
    stop_ids: Sequence[int] = (),
) -> None:
    """Write config.json and generation_config.json, and copy the tokenizer.

    Args:
        output_dir: Folder of the run.
        config: The model's sizes.
        hf_dir: Folder whose tokenizer and generation config are taken over.
        tokenizer_dir: Folder of the tokenizer, if it is another.
        stop_ids: Tokens that end an answer besides those that `hf_dir` states.
    """
    tokenizer_dir = tokenizer_dir or hf_dir
    write_text_atomically(output_dir / "config.json", json.dumps(config.to_hf(), indent=2) + "\n")
    for name in TOKENIZER_FILES if tokenizer_dir else ():
        _copy(tokenizer_dir, output_dir, name)
    stated: dict[str, object]
    if hf_dir and (hf_dir / "generation_config.json").is_file():
        if not stop_ids:
            _copy(hf_dir, output_dir, "generation_config.json")
            return
        stated = read_json(hf_dir / "generation_config.json")
    else:
        raw = config.to_hf()
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        stated = {key: raw[key] for key in ids if raw.get(key) is not None}
    if stop_ids:
        eos_ids = stated.get("eos_token_id", [])
        eos_ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
        stated["eos_token_id"] = list(dict.fromkeys((*eos_ids, *stop_ids)))
    write_text_atomically(output_dir / "generation_config.json", json.dumps(stated, indent=2) + "\n")


def _copy(source: Path | None, target: Path, name: str) -> None:
    if source is not None and (source / name).is_file():
        write_atomically(target / name, lambda temporary: shutil.copyfile(source / name, temporary))
