"""What rank 0 of a job shows, through a file, to the process that started it and has the terminal."""

import json
from collections.abc import Callable
from pathlib import Path

from qwen3_model.command.narrow import as_section, as_text
from qwen3_model.errors import FormatError

NAME = "shown.jsonl"
"""In the folder of the logs: {"say": text} for stdout and {"note": text} for stderr, in their order."""


class ShownWriter:
    """Rank 0's side."""

    def __init__(self, log_dir: Path) -> None:
        self._file = (log_dir / NAME).open("a", encoding="utf-8")

    def say(self, text: str) -> None:
        """Show a piece of a result."""
        self._write({"say": text})

    def note(self, text: str) -> None:
        """Tell the user something about the run."""
        self._write({"note": text})

    def _write(self, record: dict[str, str]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


class ShownReader:
    """The other side: hands on what has come since it was last asked."""

    def __init__(self, log_dir: Path, say: Callable[[str], None], note: Callable[[str], None]) -> None:
        """Forget what an earlier job has shown."""
        self._path, self._say, self._note = log_dir / NAME, say, note
        self._path.unlink(missing_ok=True)
        self._position, self._has_begun = 0, False

    def status(self) -> str | None:
        """Do it for a launcher: "" while there is nothing, then None, and from the next time on the texts."""
        if self._has_begun:
            self.hand_on()
            return None
        self._has_begun = self._path.exists() and self._path.stat().st_size > 0
        return None if self._has_begun else ""

    def hand_on(self) -> None:
        """Pass on every whole line."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                body = file.read()
        except FileNotFoundError:
            return
        lines = body[: body.rfind(b"\n") + 1]
        self._position += len(lines)
        for line in lines.splitlines():
            try:
                shown = {kind: as_text(text) for kind, text in as_section(json.loads(line)).items()}
            except (ValueError, FormatError):
                shown = {"note": f"{self._path} has a line of another program, which is left out"}
            for kind, text in shown.items():
                (self._say if kind == "say" else self._note)(text)
