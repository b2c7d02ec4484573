"""A whole run of `qwen3-infer score`: refuse early, load, score, write."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_infer.device import Device
from qwen3_infer.evaluate.score_data import (
    Document,
    Reading,
    check_sources,
    data_files,
    read_documents,
)
from qwen3_infer.evaluate.score_windows import Score, cut_windows
from qwen3_infer.folder.model_folder import ModelFolder
from qwen3_infer.processes.shared_model import Sharing, open_model
from qwen3_infer.settings.settings import RunSettings, open_run_folder
from qwen3_infer.text.utf8 import to_json
from qwen3_model.command.files import refuse_existing, write_text_atomically
from qwen3_model.command.progress import Progress
from qwen3_model.errors import FormatError, UsageError
from qwen3_model.text.tokenizer import END_OF_DOCUMENT

if TYPE_CHECKING:
    from qwen3_infer.processes.remote import RemoteScorer
    from qwen3_infer.steps.score_engine import Scorer

DEFAULT_WINDOW = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """What is scored and how."""

    model: RunSettings
    """Which model, and on which device."""
    data: tuple[str, ...]
    """Files, and prefixes of token files."""
    reading: Reading
    """How files become documents."""
    window: int | None
    """Tokens that the model reads at once at most; None for 2048 or the model's context."""
    stride: int | None
    """Tokens that a window after the first predicts; None for half a window."""
    begin_with_eod: bool
    """Whether the end-of-document token stands before each document, so that its first token counts."""
    output: Path | None
    """JSON lines, or None."""
    force: bool
    """Whether existing results are replaced."""
    quiet: bool
    """Whether progress is left out."""


def run_score(
    settings: ScoreSettings, device: Device, note: Callable[[str], None], launch: Sharing = None
) -> Score:
    """Score every document, write the results and return the total.

    Everything that can be refused without reading the data whole is refused before MindSpore is imported.

    Raises:
        Qwen3Error: Something in the settings, the data, the folder or the output cannot work.
    """
    if settings.output is not None:
        if settings.output.is_dir():
            raise UsageError(f"{settings.output} is a folder; --output takes a file")
        sources = [*settings.model.sources(), *data_files(settings.data)]
        refuse_existing(settings.output, force=settings.force, sources=sources)
    folder = open_run_folder(settings.model)
    window, stride = _window(settings, folder)
    for text in check_sources(settings.data, folder):
        note(text)
    first = next(read_documents(settings.data, folder, settings.reading), None)
    if first is None:
        raise FormatError(f"{', '.join(settings.data)}: there is no document to score")
    lines, total, number = [], Score(num_tokens=0, num_bytes=0, nll=0.0), 0
    with (
        open_model(folder, device, launch, quiet=settings.quiet, note=note) as model,
        Progress("score", None, "token", quiet=settings.quiet) as progress,
    ):
        scorer = model.scorer(window)
        for number, document in enumerate(_documents(settings, folder), start=1):
            score = score_document(scorer, document, window, stride, on_tokens=progress.advance)
            total += score
            lines.append(_record(score, {"document": number - 1, "id": document.id, "where": document.where}))
    if not total.num_tokens:
        raise FormatError(
            "no document has a second token to predict; --begin-with-eod makes the first one count"
        )
    if settings.output is not None:
        lines.append(_record(total, {"documents": number, "window": window, "stride": stride}))
        text = "".join(to_json(line) + "\n" for line in lines)
        write_text_atomically(settings.output, text)
    return total


def score_document(
    scorer: "Scorer | RemoteScorer",
    document: Document,
    window: int,
    stride: int,
    on_tokens: Callable[[float], None] = lambda _: None,
) -> Score:
    """Return the score of one document; `on_tokens` gets the number of tokens that each window predicts."""
    nll, num_tokens = 0.0, 0
    for part in cut_windows(len(document.ids), window, stride):
        found = scorer.score(document.ids[part.start : part.end + 1], part.num_targets)
        nll -= float(found.log_probs_T.sum())
        num_tokens += part.num_targets
        on_tokens(part.num_targets)
    return Score(num_tokens=num_tokens, num_bytes=document.num_bytes, nll=nll)


def _documents(settings: ScoreSettings, folder: ModelFolder) -> Iterator[Document]:
    start = (folder.tokenizer.token_id(END_OF_DOCUMENT),) if settings.begin_with_eod else ()
    for document in read_documents(settings.data, folder, settings.reading):
        yield Document(
            where=document.where, ids=start + document.ids, num_bytes=document.num_bytes, id=document.id
        )


def _window(settings: ScoreSettings, folder: ModelFolder) -> tuple[int, int]:
    """Return window and stride, both in tokens."""
    context = folder.config.max_position_embeddings
    window = min(DEFAULT_WINDOW, context) if settings.window is None else settings.window
    if not 1 <= window <= context:
        raise UsageError(f"--window {window} must be 1 to {context}, the model's context")
    stride = max(window // 2, 1) if settings.stride is None else settings.stride
    if not 1 <= stride <= window:
        raise UsageError(f"--stride {stride} must be 1 to {window}, the window")
    return window, stride


def _record(score: Score, about: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in about.items() if value is not None} | {
        "tokens": score.num_tokens,
        "bytes": score.num_bytes,
        "nll": score.nll,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
    }
