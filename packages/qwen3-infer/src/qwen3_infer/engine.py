"""The model on MindSpore behind two calls: read a prompt into a row, add a token to every row.

Prompts are read in pieces of two fixed lengths, so that there are three graphs at most whatever the prompts'
lengths, and how a prompt is cut depends on its own length alone. R rows, L length, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from qwen3_infer.requests import Request
from qwen3_model.cache import KVCache
from qwen3_model.config import Qwen3Config
from qwen3_model.kernels import make_kernels
from qwen3_model.loading import load_hf
from qwen3_model.model import CachedQwen3, Qwen3ForCausalLM

# A long piece costs least per token; a short one wastes least on the rest of a prompt.
PIECES = (128, 32)


class MindSporeEngine:
    """Prefill and decoding in graph mode, compiled at their first use."""

    def __init__(self, model: Qwen3ForCausalLM, num_rows: int, context_tokens: int) -> None:
        """Make room for `num_rows` requests of `context_tokens`, prompt and completion together."""
        self.num_rows = num_rows
        capacity = -(-context_tokens // PIECES[0]) * PIECES[0]
        cache = KVCache(model.config, num_rows, capacity, model.kernels.compute_dtype)
        cell = CachedQwen3(model, cache)
        cell.set_train(False)
        self._step = ms.jit(cell.construct)
        self._zeros_R = Tensor(np.zeros(num_rows, np.int32))

    def prefill(self, row: int, ids: Sequence[int]) -> np.ndarray:
        """Start `row` anew with these ids and return the logits after the last, float32 (V,)."""
        logits = None
        for start, length in cut(len(ids)):
            piece = ids[start : start + length]
            piece_ids = np.zeros((1, length), np.int32)
            piece_ids[0, : len(piece)] = piece
            positions = np.arange(start, start + length, dtype=np.int32)[None]
            logits = self._step(Tensor(piece_ids), Tensor(positions), _one(len(piece) - 1), _one(row))
        assert logits is not None, "requests have at least one token"
        return logits.asnumpy()[0]

    def decode(self, tokens_R: np.ndarray, positions_R: np.ndarray) -> np.ndarray:
        """Add one token to each row, at its position, and return the logits after it, float32 (R, V)."""
        ids_R1, positions_R1 = Tensor(tokens_R[:, None]), Tensor(positions_R[:, None])
        return self._step(ids_R1, positions_R1, self._zeros_R).asnumpy()


def cut(num_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the length of each piece of a prompt; the last may reach beyond the prompt."""
    start = 0
    while start < num_tokens:
        length = next((piece for piece in PIECES if piece <= num_tokens - start), PIECES[-1])
        yield start, length
        start += length


def make_engine(
    model_dir: Path,
    config: Qwen3Config,
    requests: Sequence[Request],
    *,
    batch_size: int,
    device_target: str,
    quiet: bool,
) -> MindSporeEngine:
    """Load the weights of `model_dir` and make room for the longest of `requests`."""
    if ms.get_context("device_target") != device_target:  # MindSpore refuses the call once it has computed
        ms.set_device(device_target)
    kernels = make_kernels(device_target)
    model = Qwen3ForCausalLM(config, kernels, param_dtype=kernels.compute_dtype)
    load_hf(model, model_dir, quiet=quiet)
    context_tokens = max(len(request.prompt_ids) + request.max_new_tokens for request in requests)
    return MindSporeEngine(model, min(batch_size, len(requests)), context_tokens)


def _one(value: int) -> Tensor:
    return Tensor(np.array([value], np.int32))
