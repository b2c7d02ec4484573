"""A conversation in a terminal: lines in, answers out as they come, the history in the model's cache."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_infer.device import Device
from qwen3_infer.engine.scheduler import Engine, Scheduler
from qwen3_infer.generate.generator import run
from qwen3_infer.generate.prompts import Prompt
from qwen3_infer.model_folder import ModelFolder
from qwen3_infer.requests import PromptForm, make_requests
from qwen3_infer.settings import Decoding, RunSettings, make_decoding, open_run_folder
from qwen3_model.errors import ConfigError, FormatError

CLEAR, EXIT = "/clear", "/exit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Terminal:
    """Who the model talks with."""

    lines: Iterable[str]
    """What the user says, a line at a time."""
    say: Callable[[str], None]
    """Shows a piece of the answer."""
    note: Callable[[str], None]
    """Tells the user something about the run."""
    quiet: bool
    """Whether progress is left out."""


class Conversation:
    """Messages so far, and the next answer to them."""

    def __init__(
        self,
        folder: ModelFolder,
        engine: Engine,
        decoding: Decoding,
        *,
        system: str | None,
        thinking: bool,
        seed: int,
        context_tokens: int,
    ) -> None:
        self._folder, self._decoding = folder, decoding
        self._scheduler = Scheduler(engine, folder.tokenizer)
        self._form = PromptForm(chat=True, thinking=thinking, allow_special=False)
        self._system, self._seed, self._context_tokens = system, seed, context_tokens
        self.messages: list[Mapping[str, Any]] = []
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def answer(self, text: str, on_text: Callable[[str], None]) -> str:
        """Return what the model says to `text`, which is given piece by piece to `on_text`.

        The history keeps both, or neither when the question is refused.

        Raises:
            ConfigError: The conversation has become too long.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = Prompt(messages=tuple(messages), where="the conversation")
        (request,) = make_requests(
            [prompt],
            self._folder,
            self._decoding,
            self._form,
            # Every turn draws other numbers.
            seed=self._seed + len(messages),
            context_tokens=self._context_tokens,
        )
        (done,) = run([request], self._scheduler, lambda _, piece: on_text(piece))
        self.messages = [*messages, {"role": "assistant", "content": done.text}]
        return done.text


def run_chat(
    settings: RunSettings, device: Device, terminal: Terminal, *, system: str | None, context_tokens: int
) -> None:
    """Answer every line of `terminal`.

    Raises:
        Qwen3Error: The settings or the folder cannot work; what a turn cannot do is a note.
    """
    folder = open_run_folder(settings)
    decoding = make_decoding(settings, folder.defaults, folder.config.vocab_size)
    if decoding.num_sequences > 1:
        raise ConfigError("num_return_sequences must be 1 in a conversation")
    context_tokens = min(context_tokens, folder.config.max_position_embeddings)
    # Refuses a folder without a chat template before the weights are read.
    folder.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    for note in settings.notes:
        terminal.note(note)
    from qwen3_infer.engine.engine import make_chat_engine

    engine = make_chat_engine(
        folder, device, context_tokens=context_tokens, quiet=terminal.quiet, note=terminal.note
    )
    conversation = Conversation(
        folder,
        engine,
        decoding,
        system=system,
        thinking=settings.thinking,
        seed=settings.seed,
        context_tokens=context_tokens,
    )
    for line in terminal.lines:
        if line.strip() == EXIT:
            break
        if line.strip() == CLEAR:
            conversation.clear()
        elif line.strip():
            try:
                conversation.answer(line, terminal.say)
                terminal.say("\n")
            except (ConfigError, FormatError) as error:
                terminal.note(f"{error}; {CLEAR} forgets the conversation")
