"""One of the processes that share a model out: it does what the process of the command says, on its shard."""

import socket
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor

from qwen3_infer.device import Device
from qwen3_infer.engine.engine import MindSporeEngine
from qwen3_infer.engine.models import MindSporeModel
from qwen3_infer.engine.tensor_parallel import Sum, join_ranks
from qwen3_infer.folder.model_folder import ModelFolder
from qwen3_infer.processes import wire
from qwen3_infer.processes.local import open_local
from qwen3_infer.processes.rank import Rank
from qwen3_infer.sampling.logits import Likeliest, Logits
from qwen3_infer.steps.score_engine import Scorer
from qwen3_model.command.narrow import as_int, as_ints, as_list, as_text
from qwen3_model.errors import Qwen3Error, WeightError
from qwen3_model.ranks.shards import Tp

PART_BITS, NUM_PARTS = 24, 5
"""Whole numbers that float32 sums exactly, and how many of them hold port and secret."""


def follow(folder: ModelFolder, device: Device, num_ranks: int, rank: Rank) -> None:
    """Load this rank's shard and do what the command's process says until it says that it is done.

    Raises:
        Qwen3Error: The model cannot be loaded, or the command's process is gone.
    """
    notes: list[str] = []
    tp = join_ranks(device, num_ranks, rank.number)
    port, secret = _shared_address(tp, rank.driver)
    model = open_local(folder, device, quiet=True, note=notes.append, tp=tp)
    assert isinstance(model, MindSporeModel), "several ranks share it out"
    try:
        with socket.create_connection((rank.master_addr, port)) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.send(link, {"rank": rank.number, "secret": secret})
            _answer_calls(link, _Follower(model), notes if rank.number == 0 else None)
    except OSError as error:
        raise Qwen3Error(f"the command's process is gone: {error}") from None


def _answer_calls(link: socket.socket, follower: "_Follower", notes: list[str] | None) -> None:
    """Execute each call that is sent, up to `end`; the rank with notes sends them first, and answers."""
    if notes is not None:
        wire.send(link, {"notes": notes})
    while True:
        message, _ = wire.receive(link)
        if message["do"] == "end":
            return
        said, arrays = follower.execute(as_text(message["do"]), as_list(message.get("with", [])))
        if notes is not None:
            wire.send(link, said, arrays)


def _shared_address(tp: Tp, driver: str) -> tuple[int, int]:
    """Return, on every rank, the port and the secret that rank 0 has."""
    parts = np.zeros(NUM_PARTS, np.float32)
    if tp.index == 0:
        port, secret = map(int, driver.split(":"))
        whole = secret << PART_BITS | port
        parts[:] = [whole >> PART_BITS * number & (1 << PART_BITS) - 1 for number in range(NUM_PARTS)]
    summed = ms.jit(Sum(tp.group).construct)(Tensor(parts)).asnumpy()
    whole = sum(int(part) << PART_BITS * number for number, part in enumerate(summed))
    return whole & (1 << PART_BITS) - 1, whole >> PART_BITS


class _Follower:
    """Executes the calls of the process that runs the command."""

    def __init__(self, model: MindSporeModel) -> None:
        self._model = model
        self._engine: MindSporeEngine | None = None
        self._scorer: Scorer | None = None
        self._rows: Sequence[Logits] = ()

    def execute(self, name: str, values: Sequence[object]) -> tuple[dict[str, object], list[np.ndarray]]:
        """Execute a call and return its answer: values, and arrays."""
        if name in ("engine", "chat_engine", "serve_engine"):
            self._engine, self._rows = None, ()  # its cache goes before the next one comes
            self._engine = engine = getattr(self._model, name)(*as_ints(values))
            names = ("num_rows", "num_tokens", "unit", "longest", "pieces", "shares_beginnings")
            return {key: getattr(engine, key) for key in names}, []
        if name == "scorer":
            self._scorer = None
            self._scorer = self._model.scorer(*as_ints(values))
            return {}, []
        if name == "about":
            return {"compute_dtype": self._model.compute_dtype}, []
        if name == "score":
            assert self._scorer is not None
            ids, num_targets = values
            try:
                found = self._scorer.score(as_ints(ids), as_int(num_targets))
            except WeightError as error:
                return {"error": str(error)}, []
            return {}, [found.log_probs_T, found.is_likeliest_T]
        if name == "whole":
            return {}, [np.stack([row.whole() for row in self._rows if isinstance(row, Likeliest)])]
        assert self._engine is not None
        if name == "copy":
            self._engine.copy(*as_ints(values))
            return {}, []
        if name == "decode":
            self._rows = self._engine.decode(*(np.array(each, np.int32) for each in values))
            return {}, _arrays(self._rows)
        start, ids, position, length = values
        piece = as_int(start), as_ints(ids), as_int(position), as_int(length)
        if name == "read_all":
            self._rows = ()
            return {}, [self._engine.read_all(*piece)]
        assert name == "read", name
        self._rows = [self._engine.read(*piece)]
        return {}, _arrays(self._rows)


def _arrays(rows: Sequence[Logits]) -> list[np.ndarray]:
    """Return all logits of each row, or, where all rows are a device's, the likeliest and their ids."""
    if whole := [row for row in rows if not isinstance(row, Likeliest)]:
        return [np.stack(whole)]
    found = [row.likeliest() for row in rows if isinstance(row, Likeliest)]
    return [np.stack(each) for each in zip(*found, strict=True)]
