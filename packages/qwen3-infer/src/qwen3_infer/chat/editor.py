"""Lines that a person types, with history and several lines, through prompt_toolkit."""

from collections.abc import Callable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from qwen3_infer.chat.commands import COMMANDS


def typed_lines(history_path: Path, say_how_to_leave: Callable[[], None]) -> Iterator[str]:
    """Yield what is typed at a terminal until Ctrl-D; Ctrl-C empties the line.

    Args:
        history_path: Keeps what was typed, readable by this user alone; nothing does when it is not writable.
        say_how_to_leave: Called at Ctrl-C.
    """
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        "> ",
        history=_history(history_path),
        key_bindings=keys,
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
    )
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            say_how_to_leave()
        except EOFError:
            return


def _history(path: Path) -> History:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.open("ab").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
