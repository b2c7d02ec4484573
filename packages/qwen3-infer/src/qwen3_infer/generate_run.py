"""A whole run of `qwen3-infer generate`: refuse early, load, generate, write."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen3_infer.device import Device
from qwen3_infer.generator import generate
from qwen3_infer.model_folder import ModelFolder, open_model_folder
from qwen3_infer.prompts import read_prompts
from qwen3_infer.requests import PromptForm, Request, make_requests, special_texts
from qwen3_infer.results import full_text, write_records, write_result_text
from qwen3_infer.scheduler import Completion
from qwen3_infer.settings import RunSettings, make_decoding
from qwen3_model.errors import UsageError
from qwen3_model.files import refuse_existing
from qwen3_model.progress import Progress


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


def run_generate(
    settings: RunSettings, device: Device, output: Output, *, truncate: bool, allow_special: bool
) -> None:
    """Generate for every prompt and write the results.

    Everything that can be refused is refused before MindSpore is imported.

    Raises:
        Qwen3Error: Something in the settings, the prompts, the folder or the outputs cannot work.
    """
    _refuse_outputs(settings, output)
    prompts = read_prompts(settings.predict_data)
    folder = open_model_folder(settings.model_dir)
    decoding = make_decoding(settings, folder.defaults, folder.config.vocab_size)
    form = PromptForm(chat=settings.chat, thinking=settings.thinking, allow_special=allow_special)
    requests = make_requests(prompts, folder, decoding, form, seed=settings.seed, truncate=truncate)
    for note in settings.notes:
        output.note(note)
    if not (settings.chat or allow_special) and (found := special_texts(prompts, folder.tokenizer)):
        output.note(
            f"{', '.join(found)} in the prompts is taken as plain text; --allow-special makes it tokens"
        )
    completions = _generate_all(settings, device, folder, requests, output)
    write_result_text(settings.result_path, completions, folder.tokenizer, settings.batch_size)
    if output.records_path:
        write_records(output.records_path, completions, chat=settings.chat)


def _refuse_outputs(settings: RunSettings, output: Output) -> None:
    paths = [settings.result_path] + ([output.records_path] if output.records_path else [])
    if len({path.absolute() for path in paths}) < len(paths):
        raise UsageError(f"{settings.result_path} cannot be both the text result and --output")
    for path in paths:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; results are written to a file")
        refuse_existing(path, force=output.force)


def _generate_all(
    settings: RunSettings, device: Device, folder: ModelFolder, requests: list[Request], output: Output
) -> list[Completion]:
    """Return the completions in the order of the requests, and print them as they finish."""
    from qwen3_infer.engine import make_engine

    engine = make_engine(
        folder.path, requests, device, batch_size=settings.batch_size, quiet=output.quiet, note=output.note
    )
    streams = output.stream and len(requests) == 1
    started_s = time.monotonic()
    completions = []
    with Progress("prompts", len(requests), "prompt", quiet=output.quiet or streams) as progress:
        on_text = (lambda _, piece: output.say(piece)) if streams else None
        for completion in generate(requests, engine, folder.tokenizer, on_text):
            completions.append(completion)
            progress.advance()
            if not streams:
                output.say(f"{full_text(completion, folder.tokenizer)}\n")
    if streams:
        output.say("\n")
    if not output.quiet:
        output.note(_speed(completions, time.monotonic() - started_s))
    return sorted(completions, key=lambda done: (done.request.index, done.request.sample))


def _speed(completions: list[Completion], elapsed_s: float) -> str:
    num_tokens = sum(len(completion.ids) for completion in completions)
    speed = num_tokens / elapsed_s
    return f"{num_tokens} tokens in {elapsed_s:.1f} s, compilation included: {speed:.1f} tokens/s"
