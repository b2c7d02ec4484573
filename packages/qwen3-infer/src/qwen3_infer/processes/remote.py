"""A model that several processes share out, seen from the process of a command, which has no MindSpore.

All processes do the same calls in the same order, each on its shard; the first of them answers. What is
chosen, by whom and when, is decided here alone. B requests, V vocabulary, C candidates, T targets.
"""

import secrets
import select
import socket
import time
from collections.abc import Mapping, Sequence

import numpy as np

from qwen3_infer.processes import wire
from qwen3_infer.sampling.logits import LikeliestRows, Logits
from qwen3_infer.steps.scored import Scored
from qwen3_model.command.narrow import as_flag, as_int, as_ints, as_text, as_texts
from qwen3_model.errors import Qwen3Error, WeightError

LOOK_S = 0.2
VERDICT_S = 8.0
"""Seconds that the launcher of this node has to say which process ended, once a connection is gone."""


class Ranks:
    """Connections to the processes of a job, rank 0's first."""

    def __init__(self, address: str, num_ranks: int) -> None:
        """Listen for `num_ranks` processes, which know the secret, at a free port of `address`."""
        family, *_, target = socket.getaddrinfo(address.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind(target)
        self._listener.listen(num_ranks)
        self._listener.settimeout(LOOK_S)
        self.port, self.secret = self._listener.getsockname()[1], secrets.randbits(96)
        self._num_ranks = num_ranks
        self._links: list[socket.socket] = []
        self._error: Qwen3Error | None = None
        self._gone_since_s: float | None = None
        self._is_closed = False

    def meet(self) -> list[str]:
        """Wait until all have loaded their shards; return rank 0's notes on it.

        Raises:
            Qwen3Error: One of them has failed.
        """
        found: dict[int, socket.socket] = {}
        while len(found) < self._num_ranks:
            self.check()
            try:
                link, _ = self._listener.accept()
            except TimeoutError:
                continue
            link.settimeout(10)
            try:
                hello, _ = wire.receive(link)
                if hello.get("secret") != self.secret:
                    raise ConnectionError("another program")
            except OSError:
                link.close()
                continue
            link.settimeout(None)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found[as_int(hello["rank"])] = link
        self._links = [found[rank] for rank in range(self._num_ranks)]
        said, _ = self._answer()
        return list(as_texts(said["notes"]))

    def check(self) -> None:
        """Raise what has ended a process, should one have ended."""
        if self._error is None and (gone := self._find_lost_rank()) is not None:
            now_s = time.monotonic()
            self._gone_since_s = self._gone_since_s or now_s
            if now_s - self._gone_since_s > VERDICT_S:
                self.fail(Qwen3Error(f"rank {gone} has ended; worker_{gone}.log on its node may say why"))
        if self._error is not None:
            raise self._error

    @property
    def has_failed(self) -> bool:
        """Whether a process has ended that nobody asked to end."""
        return self._error is not None

    def call(self, message: Mapping[str, object]) -> tuple[Mapping[str, object], list[np.ndarray]]:
        """Send a call to all ranks; return rank 0's answer.

        Raises:
            Qwen3Error: A process has ended.
        """
        return self._exchange(message, self._links)

    def ask_first(self, message: Mapping[str, object]) -> tuple[Mapping[str, object], list[np.ndarray]]:
        """Send a call to rank 0 alone; return its answer."""
        return self._exchange(message, self._links[:1])

    def _exchange(
        self, message: Mapping[str, object], links: Sequence[socket.socket]
    ) -> tuple[Mapping[str, object], list[np.ndarray]]:
        self.check()
        try:
            for link in links:
                wire.send(link, message)
        except OSError:
            self._raise_verdict()
        return self._answer()

    def _find_lost_rank(self) -> int | None:
        """Return a rank whose connection has ended; none but the first ever says anything."""
        if self._is_closed or len(self._links) < self._num_ranks:
            return None
        said, _, _ = select.select(self._links[1:], [], [], 0)
        return self._links.index(said[0]) if said else None

    def _answer(self) -> tuple[Mapping[str, object], list[np.ndarray]]:
        try:
            while not select.select(self._links[:1], [], [], LOOK_S)[0]:
                if self._find_lost_rank() is not None:  # rank 0 waits for it, and would for half an hour
                    self._raise_verdict()
            said, arrays = wire.receive(self._links[0])
        except OSError:
            self._raise_verdict()
        if "error" in said:
            raise WeightError(as_text(said["error"]))
        return said, arrays

    def _raise_verdict(self) -> None:
        until_s = time.monotonic() + 2 * VERDICT_S
        while time.monotonic() < until_s:
            self.check()
            time.sleep(LOOK_S)
        raise Qwen3Error("a process that shares the model out does not answer any more")

    def fail(self, error: Qwen3Error) -> None:
        """Say why the job has ended; who waits for an answer gets it as an exception."""
        if not self._is_closed:
            self._error = error
            self._shut()

    def close(self) -> None:
        """Let the processes end."""
        self._is_closed = True
        self._listener.close()
        for link in self._links:
            try:
                wire.send(link, {"do": "end"})
            except OSError:
                continue
        self._shut()

    def _shut(self) -> None:
        for link in self._links:
            try:
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class RemoteModel:
    """What `MindSporeModel` is, in other processes."""

    def __init__(self, ranks: Ranks, compute_dtype: str) -> None:
        self._ranks, self.compute_dtype = ranks, compute_dtype

    def check(self) -> None:
        """Raise what has ended a process that shares the model out, should one have ended."""
        self._ranks.check()

    def engine(self, num_rows: int, context_tokens: int) -> "RemoteEngine":
        """Make room for `num_rows` requests of up to `context_tokens`."""
        return self._engine("engine", num_rows, context_tokens)

    def chat_engine(self, context_tokens: int) -> "RemoteEngine":
        """Make room for one conversation."""
        return self._engine("chat_engine", context_tokens)

    def serve_engine(self, num_rows: int, num_tokens: int, context_tokens: int) -> "RemoteEngine":
        """Make room for `num_tokens` of `num_rows` requests, and compile everything."""
        return self._engine("serve_engine", num_rows, num_tokens, context_tokens)

    def scorer(self, max_tokens: int) -> "RemoteScorer":
        """Make a scorer of sequences of which the model reads at most `max_tokens`."""
        self._ranks.call({"do": "scorer", "with": [max_tokens]})
        return RemoteScorer(self._ranks, max_tokens)

    def _engine(self, kind: str, *numbers: int) -> "RemoteEngine":
        said, _ = self._ranks.call({"do": kind, "with": list(numbers)})
        return RemoteEngine(self._ranks, said)


class RemoteEngine:
    """The engine of all processes; there is one at a time."""

    def __init__(self, ranks: Ranks, facts: Mapping[str, object]) -> None:
        self._ranks = ranks
        self.num_rows, self.num_tokens = as_int(facts["num_rows"]), as_int(facts["num_tokens"])
        self.unit, self.longest = as_int(facts["unit"]), as_int(facts["longest"])
        self.pieces = tuple(as_ints(facts["pieces"]))
        self.shares_beginnings = as_flag(facts["shares_beginnings"])

    def read(self, start: int, ids: Sequence[int], position: int, length: int) -> Logits:
        """Add `ids` to the region at `start`, from `position` on, filled up to `length`."""
        numbers = [int(start), [int(token) for token in ids], int(position), int(length)]
        return self._rows({"do": "read", "with": numbers})[0]

    def read_all(self, start: int, ids: Sequence[int], position: int, length: int) -> np.ndarray:
        """Do the same, and return the logits after each of `ids`, float32 (len(ids), V)."""
        numbers = [int(start), [int(token) for token in ids], int(position), int(length)]
        return self._ranks.call({"do": "read_all", "with": numbers})[1][0]

    def decode(self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray) -> Sequence[Logits]:
        """Add one token to each of B regions, at its position; return the logits after each."""
        numbers = [each_B.tolist() for each_B in (starts_B, tokens_B, positions_B)]
        return self._rows({"do": "decode", "with": numbers})

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens`, a multiple of the shortest piece, of one region to another."""
        self._ranks.call({"do": "copy", "with": [int(source), int(target), int(num_tokens)]})

    def _rows(self, message: Mapping[str, object]) -> Sequence[Logits]:
        _, arrays = self._ranks.call(message)
        if len(arrays) == 1:
            return list(arrays[0])
        values_BC, ids_BC = arrays
        rows = LikeliestRows(_There(self._ranks), _Here(values_BC), _Here(ids_BC))
        return [rows[row] for row in range(len(values_BC))]


class RemoteScorer:
    """The scorer of all processes; there is one at a time."""

    def __init__(self, ranks: Ranks, max_tokens: int) -> None:
        self._ranks, self.max_tokens = ranks, max_tokens

    def score(self, ids: Sequence[int], num_targets: int) -> Scored:
        """Return the log-probabilities of the last `num_targets` of `ids`, each after all before it."""
        _, (log_probs_T, is_likeliest_T) = self._ranks.call(
            {"do": "score", "with": [[int(token) for token in ids], num_targets]}
        )
        return Scored(log_probs_T=log_probs_T, is_likeliest_T=is_likeliest_T)


class _Here:
    """An array that has come already."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def asnumpy(self) -> np.ndarray:
        return self._values


class _There:
    """The whole logits of the last step, which rank 0 has until the next."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def asnumpy(self) -> np.ndarray:
        return self._ranks.ask_first({"do": "whole"})[1][0]
