"""Log-probabilities of given tokens on MindSpore, with the cache and the kernels that generation uses.

B batch (1), L length, D hidden, V vocabulary, M rows, T targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from qwen3_infer.engine.pieces import PIECES, cut, round_up
from qwen3_model.cache import KVCache
from qwen3_model.errors import WeightError
from qwen3_model.model import Qwen3ForCausalLM, name_parameters

HEAD_ROWS = 32  # positions whose logits exist at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What the model thinks of the last T tokens of a sequence."""

    log_probs_T: NDArray[np.float64]
    """Natural logarithm of each token's probability after those before it."""
    is_likeliest_T: NDArray[np.bool_]
    """Whether it is the token that greedy decoding would take."""


class Scorer:
    """Reads sequences one after the other; what two in a row have in common at the beginning is read once."""

    def __init__(self, model: Qwen3ForCausalLM, max_tokens: int) -> None:
        """Make room for sequences of which the model reads at most `max_tokens`."""
        # A last piece may reach beyond the sequence.
        capacity = round_up(max_tokens + PIECES[-1], PIECES[0])
        self.max_tokens = max_tokens
        cache = model.kernels.make_cache(model.config, 1, capacity)
        reader, head = _Reader(model, cache), _Head(model)
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
        for start, length in cut(len(ids), min(known, wanted)):
            piece_BL = np.zeros((1, length), np.int32)
            piece_BL[0, : len(ids) - start] = ids[start : start + length]
            positions_BL = np.arange(start, start + length, dtype=np.int32)[None]
            hidden_MD = self._read(Tensor(piece_BL), Tensor(positions_BL)).asnumpy()
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

    def construct(self, ids_BL: Tensor, position_ids_BL: Tensor) -> Tensor:
        return self.network.model(ids_BL, position_ids_BL, None, self.cache, None).astype(ms.float32)


class _Head(nn.Cell):
    """From hidden states to logits."""

    def __init__(self, network: Qwen3ForCausalLM) -> None:
        super().__init__()
        self.network = network
        self.dtype = network.kernels.compute_dtype

    def construct(self, hidden_MD: Tensor) -> Tensor:
        return self.network.head(hidden_MD.astype(self.dtype))
