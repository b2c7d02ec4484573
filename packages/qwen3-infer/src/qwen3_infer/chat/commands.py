"""What a line of a conversation is: a question, or a command that begins with a slash."""

import re
from dataclasses import dataclass

COMMANDS = {
    "help": ("", "lists the commands"),
    "clear": ("", "forgets the conversation"),
    "system": ("[TEXT]", "shows the system message, or sets another from now on"),
    "retry": ("", "asks the last question again"),
    "save": ("FILE", "writes the conversation as a line of JSON, which generate --chat reads"),
    "exit": ("", "leaves; so does Ctrl-D"),
}
"""The commands by name: the arguments that follow, and what the command does."""
_COMMAND = re.compile(r"/([A-Za-z]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    """A line that is no question."""

    name: str
    """The word without its slash: one of `COMMANDS`, or what the user wrote."""
    rest: str
    """What follows it."""


def read_command(line: str) -> Command | None:
    """Return the command that a line is, None for a question.

    A path such as `/usr/bin` is none, and a line that begins with a space never is.
    """
    match = _COMMAND.fullmatch(line.rstrip())
    return Command(match[1].lower(), (match[2] or "").strip()) if match else None


def help_text() -> str:
    """Return what each command does, a line each."""
    rows = [(f"/{name} {rest}".strip(), does) for name, (rest, does) in COMMANDS.items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        [f"{name:<{width}}  {does}" for name, does in rows]
        + ["Enter sends, Alt-Enter is a new line, Ctrl-C stops an answer."]
    )
