"""How the launchers of a job's nodes start together, see a failure of any of them, and start again together.

In a running job each launcher writes its own heartbeat, and reads that of the next node and whether the start
has ended: two small files every two seconds, however many nodes there are. Only the node that decides about
a start, the first that lives, reads those of all, and only until it has decided.
"""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from qwen3_model.errors import FormatError, Qwen3Error
from qwen3_model.ranks.msrun.node_files import (
    DONE,
    ENDED,
    FAILED,
    RUNNING,
    STOPPED,
    WAITING,
    DamagedFileError,
    End,
    NodeFiles,
    NodeState,
    NodeWatch,
    Round,
)

BEAT_S, LOOK_S, MEET_S = 1.0, 2.0, 0.5
"""Seconds between two heartbeats; between two looks of a job that runs, and of nodes that wait."""
SEEN_BEATS = 5
"""Heartbeats after which a node that runs has been seen."""
NOTE_S = 30.0
MAX_NAMED = 8


class EndedError(Qwen3Error):
    """Another node has ended this start of the job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How long nodes wait for each other, and how often they start."""

    first_s: float
    """Wait for all of them at the first start."""
    again_s: float
    """Wait for those that are missing at a later start, before it goes without them."""
    max_restarts: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What the node that decides wants a start to be."""

    members: tuple[int, ...]
    """Numbers of the nodes that can take part; itself first."""
    port: int
    """A free one of its own."""
    arguments: tuple[str, ...] = ()
    """Variables that the workers get besides the command line."""
    is_finished: bool = False
    """There is nothing left to do."""


Propose = Callable[[Sequence[int], int], Start]
"""Decides about a start from the nodes that can take part and the number of starts before it."""


class Meeting:
    """A node's membership of a job; a context manager that writes the node's heartbeat while it is open."""

    def __init__(self, folder: Path, node: int, num_nodes: int, address: str, rules: Rules) -> None:
        """Join a job; nothing is written before the context is entered.

        Args:
            folder: Where the nodes meet, on a file system that all see.
            node: Number of this node.
            num_nodes: Nodes of the whole job.
            address: By which others reach this node.
            rules: The same on all nodes.
        """
        self._files = NodeFiles(folder)
        self.node, self.num_nodes, self._rules = node, num_nodes, rules
        newest = self._files.newest()
        self._number = newest + 1
        # Whether the start before the one that is waited for may be this very job's.
        self._follows = newest > 0 and not self._files.end(newest).state
        self._is_later = False
        self._state = NodeState(start=secrets.token_hex(8), round=self._number, address=address)
        self._round: Round | None = None
        self._neighbour: NodeWatch | None = None
        self._looked_s = float("-inf")
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="beat", daemon=True)

    def __enter__(self) -> Self:
        self._put()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._round is not None:
            # Nobody else may wait for a node that was asked to end.
            reason = f"node {self.node} has left the job: {error or type(error).__name__}"
            with suppress(OSError, FormatError):
                self._publish_end(End(state=FAILED, reason=reason, is_final=True))
        self._over.set()
        self._thread.join()

    def agree(self, propose: Propose, say: Callable[[str], object]) -> Round | End:
        """Return the next start that this node takes part in, or how the job ended without it.

        Args:
            propose: Called on one node; what it raises ends the job on all of them.
            say: Takes a sentence on who is waited for.

        Raises:
            Qwen3Error: Not all came to the first start, or whoever decides cannot let the job start.
        """
        self._set(WAITING, self._number)
        watches = [NodeWatch(self._files, node, every_s=MEET_S) for node in range(self.num_nodes)]
        began_s = noted_s = time.monotonic()
        led_s = float("inf")
        while True:
            if (found := self._read_decision()) is not None:
                return found
            waited_s = time.monotonic() - began_s
            if self._leader(watches) != self.node:
                led_s = float("inf")
                if not self._follows and waited_s > self._rules.first_s + NOTE_S:
                    raise Qwen3Error(f"node 0 has not let the job start within {waited_s:.0f} s")
                time.sleep(MEET_S)
                continue
            for watch in watches[self.node + 1 :]:
                watch.look()
            if any(self._is_at(watch, RUNNING, self._number - 1) for watch in watches):
                began_s, self._is_later, waited_s = time.monotonic(), True, 0.0
            led_s = min(max(led_s, began_s), time.monotonic())
            ready = [watch.number for watch in watches if self._is_at(watch, WAITING, self._number)]
            # A node that has just become the leader has not seen a heartbeat of the others yet.
            if self._is_enough(ready, waited_s, time.monotonic() - led_s):
                states = {watch.number: watch.state for watch in watches if watch.state is not None}
                self._decide(propose, ready, states | {self.node: self._state})
            elif time.monotonic() - noted_s > NOTE_S:
                noted_s = time.monotonic()
                say(f"waiting for {self._name_missing(ready)} since {waited_s:.0f} s")
            time.sleep(MEET_S)

    def check(self) -> bool:
        """Look at the others every LOOK_S seconds; return False while all is well.

        Raises:
            EndedError: A node has failed or is lost.
        """
        assert self._round is not None
        if time.monotonic() - self._looked_s < LOOK_S:
            return False
        self._looked_s = time.monotonic()
        with suppress(OSError, DamagedFileError):
            end = self._files.end(self._round.number)
            if end.state:
                raise EndedError(end.reason)
        if self._neighbour is not None and (how := self._describe_loss(self._neighbour)):
            self._publish_end(self._failure(how))
            raise EndedError(self._files.end(self._round.number).reason)
        return False

    def finish(self, stopped: str) -> End:
        """Wait until the workers of every node have ended; return how the start ended.

        Args:
            stopped: Why this node's workers ended before the last step; "" where they did not.
        """
        assert self._round is not None
        self._set(STOPPED if stopped else DONE, self._round.number, stopped)
        members = self._round.members if self.node == self._round.members[0] else ()
        watches = [NodeWatch(self._files, node, every_s=MEET_S) for node in members]
        while True:
            for watch in watches:
                watch.look()
            states = [watch.state for watch in watches if watch.state is not None]
            ended = [each for each in states if each.round == self._round.number and each.state in ENDED]
            if members and len(ended) == len(members):
                self._publish_end(End(state=STOPPED if stopped else DONE, reason=stopped))
            try:
                self.check()
            except EndedError:
                return self._leave_start()
            time.sleep(MEET_S)

    def fail(self, reason: str) -> End:
        """Publish that this node's workers have failed, if it is the first; return how the start ended."""
        self._publish_end(self._failure(reason))
        return self._leave_start()

    def _failure(self, reason: str) -> End:
        assert self._round is not None
        return End(state=FAILED, reason=reason, is_final=self._round.restarts >= self._rules.max_restarts)

    def _leave_start(self) -> End:
        assert self._round is not None
        end = self._files.end(self._round.number)
        self._number, self._is_later, self._follows = self._round.number + 1, True, True
        self._round = self._neighbour = None
        return end

    def _publish_end(self, end: End) -> None:
        assert self._round is not None
        if not self._files.end(self._round.number).state:
            self._files.put_end(self._round.number, end)
        self._looked_s = float("-inf")

    def _read_decision(self) -> Round | End | None:
        try:
            refused = self._files.end(self._number)
            before = self._files.end(self._number - 1) if self._follows else End()
            round_ = self._files.round(self._number)
        except (OSError, DamagedFileError):
            return None
        for end in (before, refused):
            if end.is_final:
                raise Qwen3Error(end.reason)
        if before.state in ENDED:
            return before
        if round_ is None:
            return None
        if (self.node, self._state.start) in zip(round_.members, round_.starts, strict=True):
            self._join_start(round_)
            return round_
        # It goes on without this process, which waits for the next one.
        self._number, self._follows = self._number + 1, True
        self._set(WAITING, self._number)
        return None

    def _join_start(self, round_: Round) -> None:
        self._round = round_
        self._set(RUNNING, round_.number)
        index = round_.members.index(self.node)
        after = round_.members[(index + 1) % len(round_.members)]
        self._neighbour = NodeWatch(self._files, after, every_s=LOOK_S) if after != self.node else None

    def _leader(self, watches: Sequence[NodeWatch]) -> int:
        """Return the first node that is alive; node 0 before the first start."""
        for watch in watches[: self.node]:
            watch.look()
            if not watch.is_lost:
                return watch.number
        return self.node if self._is_later else 0

    def _is_enough(self, ready: Sequence[int], waited_s: float, led_s: float) -> bool:
        if len(ready) == self.num_nodes:
            return True
        if self._is_later:
            return waited_s > self._rules.again_s and led_s > SEEN_BEATS * BEAT_S
        if waited_s > self._rules.first_s:
            raise self._refuse_start(
                f"{self._name_missing(ready)} did not come within {waited_s:.0f} s; start the same command "
                f"there, with an output_dir that all nodes see (they meet in {self._files.folder})"
            )
        return False

    def _is_at(self, watch: NodeWatch, state: str, number: int) -> bool:
        if watch.number == self.node:
            return state == WAITING
        beat = watch.state
        return watch.is_alive and beat is not None and (beat.round, beat.state) == (number, state)

    def _describe_loss(self, neighbour: NodeWatch) -> str:
        """Return how a neighbour was lost; "" where it runs, or has ended well."""
        assert self._round is not None
        neighbour.look()
        state = neighbour.state
        name = f"node {neighbour.number}" + (f" ({state.address})" if state is not None else "")
        if state is not None and state.round > self._round.number:
            return f"{name} was started anew"
        if neighbour.is_lost and (state is None or state.state not in ENDED):
            return f"{name} no longer answers"
        return ""

    def _name_missing(self, ready: Sequence[int]) -> str:
        missing = [str(node) for node in range(self.num_nodes) if node not in ready]
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        return f"node {', '.join(missing[:MAX_NAMED])}{more}"

    def _decide(self, propose: Propose, ready: Sequence[int], states: Mapping[int, NodeState]) -> None:
        before = self._files.round(self._number - 1) if self._is_later else None
        restarts = before.restarts + 1 if before is not None else 0
        try:
            start = propose(ready, restarts)
        except BaseException as error:
            self._refuse_start(str(error) or type(error).__name__)
            raise
        round_ = Round(
            number=self._number,
            members=start.members,
            starts=tuple(states[node].start for node in start.members),
            address=states[start.members[0]].address,
            port=start.port,
            restarts=restarts,
            arguments=start.arguments,
            is_finished=start.is_finished,
        )
        self._files.decide(round_)

    def _refuse_start(self, reason: str) -> Qwen3Error:
        """Publish that the job does not start; return the error to raise."""
        self._files.put_end(self._number, End(state=FAILED, reason=reason, is_final=True))
        return Qwen3Error(reason)

    def _set(self, state: str, number: int, reason: str = "") -> None:
        with self._lock:
            self._state = replace(self._state, state=state, round=number, reason=reason)
        self._put()

    def _put(self) -> None:
        with self._lock:
            self._state = replace(self._state, beat=self._state.beat + 1)
            with suppress(OSError):  # the next one may be written
                self._files.put_node(self.node, self._state)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self._put()


def own_address(other: str, port: int) -> str:
    """Return the address of this machine on the way to another one."""
    family, _, _, _, target = socket.getaddrinfo(other.strip("[]"), port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing
        address: str = probe.getsockname()[0]
    return address
