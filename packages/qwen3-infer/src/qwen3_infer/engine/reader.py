"""One sequence in MindSpore's graphs, for scoring, with the cache and the kernels that generation uses.

B batch (1), L length, D hidden, V vocabulary, M rows.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from qwen3_infer.engine.rooms import make_rooms
from qwen3_infer.engine.tensor_parallel import joined, shard_config
from qwen3_infer.steps.pieces import ALIGN
from qwen3_model.network.cache import KVCache, Rows
from qwen3_model.network.model import Qwen3ForCausalLM, name_parameters

HEAD_ROWS = 32
"""Rows of hidden states that the head is compiled for."""


class MindSporeReader:
    """What `steps.score_engine.Reader` asks for."""

    def __init__(self, model: Qwen3ForCausalLM, max_tokens: int) -> None:
        """Make room for a sequence of `max_tokens`."""
        # A piece may begin anywhere, and the last one reach beyond the sequence.
        config, most = shard_config(model.config, model.tp), max_tokens + ALIGN
        self._rooms = make_rooms(model.kernels, config, 1, most)
        self.pieces, self.piece_unit = self._rooms.pieces, self._rooms.piece_unit
        reader, head = _Reader(model, self._rooms.cache), _Head(model)
        for cell in (reader, head):
            cell.set_train(False)
        name_parameters(model)
        self._read, self._head = ms.jit(reader.construct), ms.jit(head.construct)

    def hidden(self, ids: Sequence[int], start: int, length: int) -> NDArray[np.float32]:
        """Read `ids`, filled up to `length`, at `start`; return their last hidden states (len(ids), D)."""
        piece_BL = np.zeros((1, length), np.int32)
        piece_BL[0, : len(ids)] = ids
        where = self._rooms.piece(0, start, length)
        positions_BL = np.arange(start, start + length, dtype=np.int32)[None]
        return self._read(Tensor(piece_BL), Tensor(positions_BL), where).asnumpy()[: len(ids)]

    def logits(self, hidden_MD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (M, V) of at most 32 hidden states."""
        filled_MD = np.pad(hidden_MD, ((0, HEAD_ROWS - len(hidden_MD)), (0, 0)))
        return self._head(Tensor(filled_MD)).asnumpy()[: len(hidden_MD)]


class _Reader(nn.Cell):
    """From ids to hidden states, keys and values kept."""

    def __init__(self, network: Qwen3ForCausalLM, cache: KVCache) -> None:
        super().__init__()
        self.network, self.cache = network, cache

    def construct(self, ids_BL: Tensor, position_ids_BL: Tensor, rows_B: Rows) -> Tensor:
        return self.network.model(ids_BL, position_ids_BL, None, self.cache, rows_B).astype(ms.float32)


class _Head(nn.Cell):
    """From hidden states to logits."""

    def __init__(self, network: Qwen3ForCausalLM) -> None:
        super().__init__()
        self.network = network
        self.dtype = network.kernels.compute_dtype

    def construct(self, hidden_MD: Tensor) -> Tensor:
        return joined(self.network.tp.group, self.network.head(hidden_MD.astype(self.dtype)))
