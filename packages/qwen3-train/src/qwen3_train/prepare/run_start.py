"""What a start of a run says of itself: when, on which machine, with which versions, by which command."""

import json
import os
import platform
import socket
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from qwen3_model.command.plain_text import counted
from qwen3_model.device.processor import processor_name
from qwen3_train import __version__
from qwen3_train.checkpoints.run_folder import STARTS
from qwen3_train.prepare.prepare import PreparedRun

PACKAGES = ("mindspore", "numpy")


def append_start(run: PreparedRun, command: Sequence[str]) -> None:
    """Add a line to `starts.jsonl` of the run's folder; a run that begins has one alone."""
    settings = run.settings
    start = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "machine": f"{settings.layout.num_ranks} process(es) on {settings.device}, {_processor()}",
        "after_step": run.steps_done,
        "versions": {"qwen3-train": __version__, "python": platform.python_version(), **_versions()},
        "command": list(command),
    }
    path = settings.output_dir / STARTS
    with path.open("w" if run.source is None else "a", encoding="utf-8") as file:
        file.write(json.dumps(start, ensure_ascii=False) + "\n")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Return the processor's name and the cores that this process may use."""
    return f"{processor_name()}, {counted(len(os.sched_getaffinity(0)), 'core')}"
