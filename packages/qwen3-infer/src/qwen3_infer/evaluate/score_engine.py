"""Log-probabilities of given tokens on MindSpore, with the cache and the kernels that generation uses.

B batch (1), L length, D hidden, V vocabulary, M rows, T targets.
"""

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from qwen3_infer.engine.pieces import ALIGN, cut
from qwen3_infer.engine.rooms import make_rooms
from qwen3_infer.engine.tensor_parallel import joined, shard_config
from qwen3_infer.evaluate.scored import Scored
from qwen3_model.cache import KVCache
from qwen3_model.errors import WeightError
from qwen3_model.model import Qwen3ForCausalLM, name_parameters

HEAD_ROWS = 32  # positions whose logits exist at a time


class Scorer:
    """Reads sequences one after the other; what two in a row have in common at the beginning is read once."""

    def __init__(self, model: Qwen3ForCausalLM, max_tokens: int) -> None:
        """Make room for sequences of which the model reads at most `max_tokens`."""
        self.max_tokens = max_tokens
        # A piece may begin anywhere, and the last one reach beyond the sequence.
        config, most = shard_config(model.config, model.tp), max_tokens + ALIGN
        self._rooms = make_rooms(model.kernels, config, 1, most)
        reader, head = _Reader(model, self._rooms.cache), _Head(model)
        for cell in (reader, head):
            cell.set_train(False)
        name_parameters(model)
        self._read, self._head = ms.jit(reader.construct), ms.jit(head.construct)
        self._held: list[int] = []

    def score(self, ids: Sequence[int], num_targets: int) -> Scored:
        """Return the log-probabilities of the last `num_targets` of `ids`, each after all before it.

        Raises:
            WeightError: The model computes NaN or infinity.
        """
        assert 1 <= num_targets < len(ids) <= self.max_tokens + 1, (num_targets, len(ids), self.max_tokens)
        hidden_TD = self._hidden(list(ids[:-1]), num_targets)
        log_probs, is_likeliest = np.empty(num_targets), np.empty(num_targets, np.bool_)
        targets = ids[-num_targets:]
        for start in range(0, num_targets, HEAD_ROWS):
            part_MD = hidden_TD[start : start + HEAD_ROWS]
            filled_MD = np.pad(part_MD, ((0, HEAD_ROWS - len(part_MD)), (0, 0)))
            logits_MV = self._head(Tensor(filled_MD)).asnumpy()
            for row in range(len(part_MD)):
                target = targets[start + row]
                log_probs[start + row], is_likeliest[start + row] = _log_prob(logits_MV[row], target)
        return Scored(log_probs_T=log_probs, is_likeliest_T=is_likeliest)

    def _hidden(self, ids: list[int], num_last: int) -> NDArray[np.float32]:
        """Return the last hidden states (num_last, D) of the end of `ids`."""
        pairs = zip(self._held, ids, strict=False)
        known = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self._held), len(ids)))
        self._held = ids
        wanted, parts = len(ids) - num_last, []
        first = min(known, wanted)
        for start, length in cut(len(ids), first - first % self._rooms.piece_unit, self._rooms.pieces):
            piece_BL = np.zeros((1, length), np.int32)
            piece_BL[0, : len(ids) - start] = ids[start : start + length]
            where = self._rooms.piece(0, start, length)
            positions_BL = np.arange(start, start + length, dtype=np.int32)[None]
            hidden_MD = self._read(Tensor(piece_BL), Tensor(positions_BL), where).asnumpy()
            parts.append(hidden_MD[max(wanted - start, 0) : len(ids) - start])
        return np.concatenate(parts)


def _log_prob(logits_V: NDArray[np.float32], target: int) -> tuple[float, bool]:
    """Return the log-probability of `target`, summed in float64, and whether it is the likeliest token."""
    likeliest = int(logits_V.argmax())  # of NaN, when there is one
    most = logits_V[likeliest]
    if not np.isfinite(most):
        raise WeightError("the model computes NaN or infinity; check its weights with qwen3-model verify")
    total = np.exp(logits_V - most).sum(dtype=np.float64)
    return float(logits_V[target]) - float(most) - float(np.log(total)), likeliest == target


class _Reader(nn.Cell):
    """From ids to hidden states, keys and values kept."""

    def __init__(self, network: Qwen3ForCausalLM, cache: KVCache) -> None:
        super().__init__()
        self.network, self.cache = network, cache

    def construct(self, ids_BL: Tensor, position_ids_BL: Tensor, rows_B: Any) -> Tensor:
        return self.network.model(ids_BL, position_ids_BL, None, self.cache, rows_B).astype(ms.float32)


class _Head(nn.Cell):
    """From hidden states to logits."""

    def __init__(self, network: Qwen3ForCausalLM) -> None:
        super().__init__()
        self.network = network
        self.dtype = network.kernels.compute_dtype

    def construct(self, hidden_MD: Tensor) -> Tensor:
        return joined(self.network.tp.group, self.network.head(hidden_MD.astype(self.dtype)))
