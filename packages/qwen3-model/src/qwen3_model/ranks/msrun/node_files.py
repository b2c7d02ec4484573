"""The files by which the launchers of several nodes know of each other, in a folder that all of them see.

    node_K.json     of node K alone: its round, its state, and a heartbeat that grows while its launcher runs
    round_R.json    who takes part in start number R and how; made once, by whoever comes first
    end_R.json      why it has ended; there from its beginning, so that no node caches that it is missing

No clock is compared with another's: a node is lost when many looks of another find its heartbeat unchanged.
"""

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from qwen3_model.command.narrow import as_flag, as_int, as_ints, as_section, as_text, as_texts, build
from qwen3_model.errors import FormatError

WAITING, RUNNING, DONE, STOPPED, FAILED = "waiting", "running", "done", "stopped", "failed"
ENDED = (DONE, STOPPED)
LOST_S = 20.0
"""Seconds with the same heartbeat after which a node is lost."""
ROUND_NAME = re.compile(r"(?:round|end)_(\d+)\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeState:
    """A launcher's own state, as it writes it."""

    start: str = ""
    """Another for each process."""
    beat: int = 0
    round: int = 0
    """Number of the start that it takes part in, or waits for."""
    state: str = WAITING
    address: str = ""
    """Address by which the others reach this node."""
    reason: str = ""
    """What asked for a stop; for `STOPPED` only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One start of the job."""

    number: int
    members: tuple[int, ...]
    """Nodes that take part; the first has the scheduler and the run's first rank."""
    starts: tuple[str, ...]
    """The start of each node's processes; see `NodeState.start`."""
    address: str
    port: int
    restarts: int
    """Starts of this job before it."""
    arguments: tuple[str, ...] = ()
    """Variables that the workers get besides the command line."""
    is_finished: bool = False
    """There is nothing left to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """Why a start of the job has ended; no state while it goes on."""

    state: str = ""
    reason: str = ""
    is_final: bool = False
    """No start follows."""


Contents = TypeVar("Contents", NodeState, Round, End)
READERS: Mapping[object, Callable[[object], object]] = {
    str: as_text,
    int: as_int,
    bool: as_flag,
    tuple[int, ...]: lambda value: tuple(as_ints(value)),
    tuple[str, ...]: lambda value: tuple(as_texts(value)),
}
"""How a value of each type that a field may have is read."""


class DamagedFileError(FormatError):
    """A file that is not JSON, as one that a machine was writing when it went down."""


class NodeFiles:
    """Reads and writes the folder.

    What reads raises DamagedFileError, or FormatError for a file that another version has written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def newest(self) -> int:
        """Return the number of the newest start; 0 for none."""
        found = (ROUND_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return max((int(match[1]) for match in found if match), default=0)

    def node(self, number: int) -> NodeState | None:
        """Return a node's last state; None where it has written none."""
        return self._read(f"node_{number}.json", NodeState)

    def node_changed_ns(self, number: int) -> int:
        """Return when a node's state was last written, by the file system's clock."""
        return (self.folder / f"node_{number}.json").stat().st_mtime_ns

    def put_node(self, number: int, state: NodeState) -> None:
        """Replace a node's state."""
        self._write(f"node_{number}.json", asdict(state))

    def round(self, number: int) -> Round | None:
        """Return a start; None where it is not decided yet."""
        name = f"round_{number}.json"
        found = self._read(name, Round)
        if found is not None and not len(found.members) == len(found.starts) > 0:
            raise self._of_another_version(
                name, f"has {len(found.starts)} starts of {len(found.members)} members"
            )
        return found

    def decide(self, round_: Round) -> bool:
        """Make a start known, and forget those before the last; False where another was first."""
        if not (self.folder / f"end_{round_.number}.json").exists():
            self.put_end(round_.number, End())
        temporary = self._temporary(f"round_{round_.number}.json", asdict(round_))
        try:
            os.link(temporary, self.folder / f"round_{round_.number}.json")
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        for path in self.folder.iterdir():
            match = ROUND_NAME.fullmatch(path.name)
            if match and int(match[1]) < round_.number - 1:
                path.unlink(missing_ok=True)
        return True

    def end(self, number: int) -> End:
        """Return why a start has ended."""
        return self._read(f"end_{number}.json", End) or End()

    def put_end(self, number: int, end: End) -> None:
        """Say why a start has ended."""
        self._write(f"end_{number}.json", asdict(end))

    def _read(self, name: str, kind: type[Contents]) -> Contents | None:
        try:
            stated: object = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(
                f"{self.folder / name} is not JSON: {error}; remove {self.folder} and start all nodes again"
            ) from None
        try:
            values = as_section(stated)
        except FormatError as error:
            raise self._of_another_version(name, f"holds no JSON object: {error}") from None
        known = {field.name: field for field in fields(kind)}
        checked: dict[str, object] = {}
        for key, value in values.items():
            if key not in known:
                raise self._of_another_version(name, f"has the unknown key {key!r}")
            try:
                checked[key] = READERS[known[key].type](value)
            except FormatError as error:
                raise self._of_another_version(name, f"has a wrong {key}: {error}") from None
        if missing := [key for key in known if known[key].default is MISSING and key not in checked]:
            raise self._of_another_version(name, f"lacks {', '.join(missing)}")
        return build(kind, checked)

    def _of_another_version(self, name: str, fault: str) -> FormatError:
        return FormatError(
            f"{self.folder / name} {fault}, as a launcher of another version writes; remove {self.folder} "
            "and start all nodes with the same version"
        )

    def _write(self, name: str, values: Mapping[str, object]) -> None:
        self._temporary(name, values).replace(self.folder / name)

    def _temporary(self, name: str, values: Mapping[str, object]) -> Path:
        path = self.folder / f".{name}.{secrets.token_hex(4)}"
        # Not synced: after a crash of the machine nobody reads it.
        path.write_text(json.dumps(values), encoding="utf-8")
        return path


class NodeWatch:
    """Looks at one node again and again, to see whether it lives."""

    def __init__(self, files: NodeFiles, number: int, *, every_s: float) -> None:
        """Take the node's number and how often it will be looked at."""
        self._files, self.number, self._longest = files, number, LOST_S / every_s
        self.state: NodeState | None = None
        self._still, self.has_moved = 0, False
        self._foreign_ns = 0

    def look(self) -> None:
        """Look once; a look that the file system refuses does not count.

        Raises:
            FormatError: A launcher of another version writes the node's state, again and again.
        """
        try:
            state = self._read_state()
        except (OSError, DamagedFileError):
            return
        if state == self.state:
            self._still += 1
            return
        self.has_moved = self.state is not None
        self.state, self._still = state, 0

    def _read_state(self) -> NodeState | None:
        try:
            return self._files.node(self.number)
        except DamagedFileError:
            raise
        except FormatError:
            # One that an earlier job has left stands still, until this job's launcher replaces it.
            before, self._foreign_ns = self._foreign_ns, self._files.node_changed_ns(self.number)
            if before not in (0, self._foreign_ns):
                raise
            return None

    @property
    def is_lost(self) -> bool:
        """Whether it has stood still for too long; it may never have been there."""
        return self._still >= self._longest

    @property
    def is_alive(self) -> bool:
        """Whether it was seen to move, and not long ago."""
        return self.has_moved and not self.is_lost
