"""What a run says: lines on stdout and in the worker's log, and a JSON object per step for other programs."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from qwen3_model.command.files import write_text_atomically
from qwen3_model.command.narrow import as_int, as_number, as_section
from qwen3_model.command.plain_text import without_controls
from qwen3_model.command.progress import clock
from qwen3_model.errors import FormatError
from qwen3_train.reports.event_file import EventFile

EVENTS = "events"
"""Folder of TensorBoard's files in a run's folder."""
WORKER_LOG = Path("msrun_log") / "worker_0.log"


class RunLog:
    """Write lines to the terminal and to a file."""

    def __init__(
        self, path: Path | None, *, append: bool, stream: TextIO | None = None, quiet: bool = False
    ) -> None:
        """Open `path`; None for a worker, whose output msrun writes to `worker_R.log`.

        A quiet log keeps its plain lines from the terminal, not its warnings.
        """
        self._stream, self._quiet = stream or sys.stdout, quiet
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a" if append else "w", encoding="utf-8")

    def line(self, text: str, level: str = "INFO", *, to_terminal: bool = True) -> None:
        """Write one line with the time in front."""
        to_terminal = to_terminal and not (self._quiet and level == "INFO")
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        # Names of strangers begin no line that looks like ours.
        line = f"{stamp} - {level} - {without_controls(text)}".replace("\n", "\n  ") + "\n"
        if to_terminal:
            self._stream.write(line)
            self._stream.flush()
        if self._file is not None:
            with _name_in_errors(self._file):
                self._file.write(line)
                self._file.flush()

    def close(self) -> None:
        """Close the log file."""
        if self._file is not None:
            with _name_in_errors(self._file):
                self._file.close()


class Metrics:
    """Append one JSON object per line to `metrics.jsonl`, and the same to an event file for TensorBoard."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Open `path`, keeping the lines of a resumed run up to `after_step`; 0 starts anew."""
        earlier = read_metrics(path) if after_step > 0 and path.is_file() else []
        kept = [line for line in earlier if line["step"] <= after_step]
        write_text_atomically(path, "".join(f"{json.dumps(line)}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._events = EventFile(path.parent / EVENTS, after_step=after_step)

    def write(self, *, step: int, **values: float) -> None:
        """Write one line, at once."""
        with _name_in_errors(self._file):
            self._file.write(json.dumps({"step": step} | values) + "\n")
            self._file.flush()
        self._events.write(step, values)

    def close(self) -> None:
        """Close the files."""
        with _name_in_errors(self._file):
            self._file.close()
        self._events.close()


@contextmanager
def _name_in_errors(file: TextIO) -> Iterator[None]:
    """Say in an error of the block which file it is about, which writing, unlike opening, does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or file.name
        raise


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the objects of a metrics file; a last line cut by a kill is left out.

    Raises:
        FormatError: The file is missing, a line before the last is not JSON, or a line has other values.
    """
    if not path.is_file():
        raise FormatError(f"{path} does not exist; give the output folder of qwen3-train launch")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    objects = []
    for number, line in enumerate(lines, 1):
        try:
            objects.append(parse_metrics(line))
        except FormatError as error:
            raise FormatError(f"{path}: line {number} holds no metrics of a step: {error}") from None
        except (ValueError, RecursionError):
            if number != len(lines):
                raise FormatError(f"{path}: line {number} is not JSON") from None
    return objects


def parse_metrics(line: str) -> dict[str, float]:
    """Return the values of a line of metrics: numbers by name, of which `step` is a whole one.

    Raises:
        ValueError, RecursionError: The line is not JSON.
        FormatError: It holds something else.
    """
    values: dict[str, float] = {}
    for name, value in as_section(json.loads(line)).items():
        try:
            values[name] = as_int(value) if name == "step" else as_number(value)
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from None
    if "step" not in values:
        raise FormatError("it has no step")
    return values


def step_line(
    epochs: tuple[int, int], steps: tuple[int, int], values: Mapping[str, float], left_s: float
) -> str:
    """Return mindformers' line of a step.

    Args:
        epochs: The current one and the last.
        steps: The current one within the epoch and the epoch's last.
        values: Loss, lr, grad_norm, tokens_per_s, step_time_s and perhaps mfu, as in the metrics.
        left_s: Estimated seconds to the end of the run.
    """
    mfu = f", mfu: {values['mfu']:.1%}" if "mfu" in values else ""
    parts = [
        f"Epoch:[{_format_count(*epochs)}], step:[{_format_count(*steps)}], loss: {values['loss']:.6f}",
        f"per_step_time: {values['step_time_s'] * 1000:.0f}ms, lr: {values['lr']:.6g}",
        f"overflow cond: False, loss_scale: 1.0, global_norm: [{values['grad_norm']:.4f}]",
        f"tokens_per_s: {values['tokens_per_s']:.0f}{mfu}, eta: {clock(left_s)}",
    ]
    return f"{{ {', '.join(parts)} }}"


def _format_count(now: int, last: int) -> str:
    return f"{now:{len(str(last))}}/{last}"
