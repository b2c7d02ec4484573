"""A conversation in a terminal: lines in, answers out as they come."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qwen3_infer.chat.commands import Command, help_text, read_command
from qwen3_infer.chat.conversation import Answer, Conversation
from qwen3_infer.chat.interrupt import Interrupt
from qwen3_infer.device import Device
from qwen3_infer.processes.shared_model import Sharing, open_model
from qwen3_infer.settings.settings import RunSettings, make_decoding, open_run_folder
from qwen3_infer.text.output import Part
from qwen3_infer.text.utf8 import is_utf8
from qwen3_model.command.files import refuse_existing, write_text_atomically
from qwen3_model.command.plain_text import counted
from qwen3_model.errors import ConfigError, Qwen3Error, UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Terminal:
    """Who the model talks with."""

    lines: Iterable[str]
    """What the user says, a line at a time."""
    say: Callable[[str], None]
    """Shows a piece of the answer."""
    think: Callable[[str], None]
    """Shows a piece of the thought."""
    note: Callable[[str], None]
    """Tells the user something about the run."""
    interrupt: Interrupt
    """Whether the answer shall end."""
    quiet: bool
    """Whether progress, the greeting and speeds are left out."""


class Chat:
    """Does what each line says."""

    def __init__(
        self, conversation: Conversation, terminal: Terminal, check: Callable[[], None] = lambda: None
    ) -> None:
        """Take what is said where; `check` raises what makes going on useless."""
        self._conversation, self._terminal, self._check = conversation, terminal, check

    def run(self) -> None:
        """Go on until the lines end, or one of them is /exit."""
        for line in self._terminal.lines:
            if not is_utf8(line):
                self._terminal.note("this line is no UTF-8 and is left out")
                continue
            command = read_command(line)
            if command and command.name == "exit":
                return
            try:
                if command:
                    self._execute(command)
                elif line.strip():
                    self._show(partial(self._conversation.answer, line, *self._ways()))
            except ConfigError as error:
                self._terminal.note(f"{error}; /clear forgets the conversation")
            except (Qwen3Error, OSError) as error:
                self._check()
                self._terminal.note(str(error))

    def _execute(self, command: Command) -> None:
        conversation, note = self._conversation, self._terminal.note
        match command.name:
            case "help":
                note(help_text())
            case "clear":
                conversation.clear()
                note("the conversation is forgotten")
            case "retry":
                if not conversation.turns:
                    note("there is no question to ask again")
                else:
                    self._show(partial(conversation.retry, *self._ways()))
            case "system":
                if command.rest:
                    conversation.system = command.rest
                note(f"the system message is {conversation.system!r}")
            case "save":
                self._save(command.rest)
            case _:
                note(
                    f"there is no command /{command.name}; /help lists them, a space before it makes it text"
                )

    def _save(self, name: str) -> None:
        if not name:
            self._terminal.note("name a file: /save FILE")
            return
        try:
            path = Path(name).expanduser()
            refuse_existing(path, force=False)
            write_text_atomically(path, self._conversation.record())
        except (ValueError, RuntimeError) as error:  # U+0000 in it, ~ of nobody
            self._terminal.note(f"{name!r} is no name of a file: {error}")
            return
        self._terminal.note(f"saved to {path}")

    def _ways(self) -> tuple[Callable[[Part], None], Callable[[], bool]]:
        return self._show_part, lambda: self._terminal.interrupt.has_come

    def _show_part(self, part: Part) -> None:
        (self._terminal.think if part.kind == "reasoning" else self._terminal.say)(part.text)

    def _show(self, ask: Callable[[], Answer]) -> None:
        with self._terminal.interrupt.during_answer():
            answer = ask()
        self._terminal.say("\n")
        if not self._terminal.quiet:
            speed = answer.num_tokens / max(answer.seconds, 1e-6)
            ends = {"length": ", cut at the longest length", "interrupted": ", stopped"}
            facts = (
                f"{counted(answer.num_tokens, 'token')}, {speed:.1f} "
                f"tokens/s{ends.get(answer.finish_reason, '')}"
            )
            self._terminal.note(facts)


def run_chat(
    settings: RunSettings,
    device: Device,
    terminal: Terminal,
    *,
    system: str | None,
    context_tokens: int,
    launch: Sharing = None,
) -> None:
    """Answer every line of `terminal`; with `launch` the model is shared out over its processes.

    Raises:
        Qwen3Error: The settings or the folder cannot work, or one of these processes has ended; what a turn
        cannot
            do is a note.
    """
    if system is not None and not is_utf8(system):
        raise UsageError("--system is no UTF-8")
    folder = open_run_folder(settings)
    decoding = make_decoding(settings, folder.defaults, folder.config.vocab_size)
    if decoding.num_sequences > 1:
        raise ConfigError("num_return_sequences must be 1 in a conversation")
    context_tokens = min(context_tokens, folder.config.max_position_embeddings)
    # Refuses a folder without a chat template before the weights are read.
    folder.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    for note in settings.notes:
        terminal.note(note)
    with open_model(folder, device, launch, quiet=terminal.quiet, note=terminal.note) as model:
        conversation = Conversation(
            folder,
            model.chat_engine(context_tokens),
            decoding,
            system=system,
            thinking=settings.thinking,
            seed=settings.seed,
            context_tokens=context_tokens,
        )
        if not terminal.quiet:
            thinks = "thinks first" if settings.thinking else "answers at once"
            terminal.note(
                f"{folder.path.resolve().name}, {thinks}, {counted(context_tokens, 'token')} of context. "
                "/help lists the commands, Ctrl-C stops an answer, Ctrl-D or /exit leaves."
            )
        Chat(conversation, terminal, model.check).run()
