"""Which worker of a job this process is; free of MindSpore."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Rank:
    """Which worker of a job this process is; the context's `obj` of such a command."""

    number: int
    log_dir: Path
    """Folder in which it says what the terminal shall show."""
    master_addr: str = "127.0.0.1"
    """Address of node 0."""
    driver: str = ""
    """Where the command's process listens for rank 0: `PORT:SECRET`; empty where there is none."""
