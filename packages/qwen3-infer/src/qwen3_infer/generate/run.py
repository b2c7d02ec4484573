"""A whole run of `qwen3-infer generate`: refuse early, load, generate, write."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_infer.device import Device
from qwen3_infer.folder.model_folder import ModelFolder
from qwen3_infer.generate.display import Display
from qwen3_infer.generate.results import is_own_result, write_records, write_result_text
from qwen3_infer.generate.shown import ShownWriter
from qwen3_infer.schedule.generator import generate
from qwen3_infer.schedule.jobs import BatchLimits, Completion, tokens_needed
from qwen3_infer.schedule.requests import PromptForm, Request, make_requests, special_texts
from qwen3_infer.settings.settings import DEFAULT_RESULT, RunSettings, make_decoding, open_run_folder
from qwen3_infer.text.prompts import read_prompts
from qwen3_model.command.files import refuse_existing, require_writable
from qwen3_model.command.plain_text import counted
from qwen3_model.command.progress import Progress
from qwen3_model.errors import ConfigError, UsageError
from qwen3_model.ranks.layout_checks import split_problems

if TYPE_CHECKING:
    from qwen3_model.ranks.shards import Tp


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Where results go and what is shown meanwhile."""

    records_path: Path | None
    """JSON lines, or None."""
    force: bool
    """Whether existing results are replaced."""
    stream: bool
    """Whether text is printed as it comes, when there is one prompt."""
    quiet: bool
    """Whether progress and speed are left out."""
    say: Callable[[str], None]
    """Writes a result to the terminal."""
    note: Callable[[str], None]
    """Tells the user something about the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedGeneration:
    """What nothing known beforehand speaks against."""

    folder: ModelFolder
    """The model."""
    requests: list[Request]
    """What it is asked."""
    notes: tuple[str, ...]
    """Sentences for the user."""


def prepare_generate(
    settings: RunSettings, output: Output, *, truncate: bool, allow_special: bool, writes: bool = True
) -> PreparedGeneration:
    """Check everything that can be known before MindSpore is imported.

    Args:
        settings: What to do.
        output: Where results go.
        truncate: Whether prompts that are too long lose their beginning.
        allow_special: Whether special tokens' text in plain prompts are tokens.
        writes: Whether the results are written by this process or one that it starts.

    Raises:
        Qwen3Error: Something in the settings, the prompts, the folder or the outputs cannot work.
    """
    prompts = read_prompts(settings.predict_data)
    if writes:
        _refuse_outputs(settings, output)
    folder = open_run_folder(settings)
    if problems := split_problems(folder.config, settings.model_parallel):
        raise ConfigError("; ".join(problems))
    decoding = make_decoding(settings, folder.defaults, folder.config.vocab_size)
    form = PromptForm(chat=settings.chat, thinking=settings.thinking, allow_special=allow_special)
    requests = make_requests(prompts, folder, decoding, form, seed=settings.seed, truncate=truncate)
    _refuse_too_long(requests, settings.max_tokens_in_cache)
    notes = list(settings.notes)
    if not (settings.chat or allow_special) and (found := special_texts(prompts, folder.tokenizer)):
        notes.append(
            f"{', '.join(found)} in the prompts is taken as plain text; --allow-special makes it tokens"
        )
    return PreparedGeneration(folder=folder, requests=requests, notes=tuple(notes))


def _refuse_too_long(requests: list[Request], max_tokens: int | None) -> None:
    longest = max(requests, key=tokens_needed)
    if max_tokens is not None and tokens_needed(longest) > max_tokens:
        raise ConfigError(
            f"{longest.prompt.where} with its completion needs {counted(tokens_needed(longest), 'token')} "
            "of the cache, "
            f"more than --max-tokens-in-cache {max_tokens}; raise that, or lower --max-new-tokens"
        )


def print_notes(prepared: PreparedGeneration, output: Output) -> None:
    """Print what the checks have found."""
    for note in prepared.notes:
        output.note(note)


def run_generate(
    settings: RunSettings, device: Device, output: Output, *, truncate: bool, allow_special: bool
) -> None:
    """Generate for every prompt in this process and write the results.

    Raises:
        Qwen3Error: Something cannot work, which is known before MindSpore is imported, or the weights do not.
    """
    prepared = prepare_generate(settings, output, truncate=truncate, allow_special=allow_special)
    print_notes(prepared, output)
    _write(settings, prepared, output, _generate_all(settings, device, prepared, output, rank=0))


def run_rank(
    settings: RunSettings,
    device: Device,
    output: Output,
    shown: ShownWriter | None,
    rank: int,
    *,
    truncate: bool,
    allow_special: bool,
) -> None:
    """Generate as one of the processes that share the model out, after what started them has checked all.

    Args:
        settings: What to do.
        device: Device of this rank.
        output: Where results go.
        shown: Takes what the terminal shall show; None on all ranks but the first, which also writes nothing.
        rank: This one.
        truncate: As in `prepare_generate`.
        allow_special: As in `prepare_generate`.

    Raises:
        Qwen3Error: As `run_generate`.
    """
    if shown:
        output = replace(output, say=shown.say, note=shown.note)
    else:
        output = replace(output, say=lambda _: None, note=lambda _: None)
    prepared = prepare_generate(
        settings, output, truncate=truncate, allow_special=allow_special, writes=False
    )
    completions = _generate_all(settings, device, prepared, output, rank=rank)
    if shown:
        _write(settings, prepared, output, completions)


def _write(
    settings: RunSettings, prepared: PreparedGeneration, output: Output, completions: list[Completion]
) -> None:
    tokenizer = prepared.folder.tokenizer
    write_result_text(settings.result_path, completions, tokenizer, settings.batch_size)
    if output.records_path:
        write_records(output.records_path, completions, tokenizer, chat=settings.chat)


def _refuse_outputs(settings: RunSettings, output: Output) -> None:
    """Raise when a result cannot be written where it shall be; only the default one replaces its like."""
    paths = {"--save-file": settings.result_path}
    if output.records_path:
        paths["--output"] = output.records_path
    if len({path.absolute() for path in paths.values()}) < len(paths):
        raise UsageError(f"{settings.result_path} cannot be both the text result and --output")
    for option, path in paths.items():
        if path.is_dir():
            raise UsageError(f"{path} is a folder; results are written to a file")
        is_replaced = path == Path(DEFAULT_RESULT) and is_own_result(path)
        refuse_existing(path, force=output.force or is_replaced, sources=settings.sources())
        try:
            require_writable(path)
        except OSError as error:
            raise UsageError(
                f"{option} {path} cannot be written: {error.strerror or error}; name a file elsewhere"
            ) from None


def _generate_all(
    settings: RunSettings, device: Device, prepared: PreparedGeneration, output: Output, *, rank: int
) -> list[Completion]:
    """Return the completions in the order of the requests, and print them as they finish."""
    from qwen3_infer.processes.local import make_engine

    folder, requests = prepared.folder, prepared.requests
    engine = make_engine(
        folder,
        requests,
        device,
        limits=BatchLimits(settings.batch_size, settings.max_tokens_in_cache),
        quiet=output.quiet,
        note=output.note,
        tp=_join(device, settings.model_parallel, rank),
    )
    streams = output.stream and len(requests) == 1
    started_s = time.monotonic()
    completions = []
    note = (lambda _: None) if output.quiet else output.note
    display = Display(folder.tokenizer, chat=settings.chat, say=output.say, note=note)
    with Progress("prompts", len(requests), "prompt", quiet=output.quiet or streams) as progress:
        for completion in generate(requests, engine, folder.tokenizer, display.piece if streams else None):
            completions.append(completion)
            progress.advance()
            if not streams:
                display.whole(completion)
    if streams:
        display.end()
    if not output.quiet:
        output.note(_speed(completions, time.monotonic() - started_s))
    return sorted(completions, key=lambda done: (done.request.index, done.request.sample))


def _speed(completions: list[Completion], elapsed_s: float) -> str:
    num_tokens = sum(len(completion.ids) for completion in completions)
    speed = num_tokens / elapsed_s
    return f"{counted(num_tokens, 'token')} in {elapsed_s:.1f} s, compilation included: {speed:.1f} tokens/s"


def _join(device: Device, num_ranks: int, rank: int) -> "Tp | None":
    """Meet the ranks that share the model out; None where this process has it alone."""
    if num_ranks == 1:
        return None
    from qwen3_infer.engine.tensor_parallel import join_ranks

    return join_ranks(device, num_ranks, rank)
