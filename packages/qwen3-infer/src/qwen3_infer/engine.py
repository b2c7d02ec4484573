"""The model on MindSpore behind two calls: read a prompt into a row, add a token to every row.

Prompts are read in pieces of two fixed lengths, so that there are three graphs at most whatever the prompts'
lengths, and how a prompt is cut depends on its own length alone. R rows, L length, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from qwen3_infer.device import Device
from qwen3_infer.native_build import BuildError, native_library
from qwen3_infer.native_kernels import NativeKernels
from qwen3_infer.requests import Request
from qwen3_model.cache import KVCache
from qwen3_model.hf_folder import open_hf_folder
from qwen3_model.kernels import make_kernels
from qwen3_model.layers import Kernels
from qwen3_model.loading import load_hf
from qwen3_model.model import CachedQwen3, Qwen3ForCausalLM

# A long piece costs least per token; a short one wastes least on the rest of a prompt.
PIECES = (128, 32)


class MindSporeEngine:
    """Prefill and decoding in graph mode, compiled at their first use."""

    def __init__(
        self, model: Qwen3ForCausalLM, num_rows: int, context_tokens: int, *, reuses_beginnings: bool = False
    ) -> None:
        """Make room for `num_rows` requests of `context_tokens`, prompt and completion together.

        With `reuses_beginnings` a row reads only what differs from what it holds, as when a conversation goes
        on; how a prompt is cut then depends on what was there before.
        """
        self.num_rows, self.reuses_beginnings = num_rows, reuses_beginnings
        self.num_read = 0
        """Prompt tokens that were read, not found in a row."""
        # A last piece may reach beyond the context.
        capacity = -(-(context_tokens + PIECES[-1]) // PIECES[0]) * PIECES[0]
        cache = KVCache(model.config, num_rows, capacity, model.kernels.compute_dtype)
        cell = CachedQwen3(model, cache)
        cell.set_train(False)
        self._step = ms.jit(cell.construct)
        self._zeros_R = Tensor(np.zeros(num_rows, np.int32))
        self._held: list[list[int]] = [[] for _ in range(num_rows)]

    def prefill(self, row: int, ids: Sequence[int]) -> np.ndarray:
        """Make `row` hold these ids and return the logits after the last, float32 (V,)."""
        logits = None
        known = _num_equal(self._held[row], ids[:-1]) if self.reuses_beginnings else 0
        self.num_read += len(ids) - known
        self._held[row] = list(ids)
        for start, length in cut(len(ids), known):
            piece = ids[start : start + length]
            piece_ids = np.zeros((1, length), np.int32)
            piece_ids[0, : len(piece)] = piece
            positions = np.arange(start, start + length, dtype=np.int32)[None]
            logits = self._step(Tensor(piece_ids), Tensor(positions), _one(len(piece) - 1), _one(row))
        assert logits is not None, "requests have at least one token"
        return logits.asnumpy()[0]

    def decode(self, tokens_R: np.ndarray, positions_R: np.ndarray) -> np.ndarray:
        """Add one token to each row, at its position, and return the logits after it, float32 (R, V)."""
        for held, token, position in zip(self._held, tokens_R.tolist(), positions_R.tolist(), strict=True):
            held[position:] = [token]
        ids_R1, positions_R1 = Tensor(tokens_R[:, None]), Tensor(positions_R[:, None])
        return self._step(ids_R1, positions_R1, self._zeros_R).asnumpy()


def cut(num_tokens: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the start and the length of each piece of a prompt; the last may reach beyond the prompt."""
    while start < num_tokens:
        length = next((piece for piece in PIECES if piece <= num_tokens - start), PIECES[-1])
        yield start, length
        start += length


def make_engine(
    model_dir: Path,
    requests: Sequence[Request],
    device: Device,
    *,
    batch_size: int,
    quiet: bool,
    note: Callable[[str], None],
) -> MindSporeEngine:
    """Load the weights of `model_dir` and make room for the longest of `requests`.

    Raises:
        BuildError: Native kernels are asked for and cannot be compiled.
    """
    kernels = choose_kernels(device, note)
    model = load_model(model_dir, kernels, quiet=quiet)
    context_tokens = max(len(request.prompt_ids) + request.max_new_tokens for request in requests)
    return MindSporeEngine(model, min(batch_size, len(requests)), context_tokens)


def make_chat_engine(
    model_dir: Path, device: Device, *, context_tokens: int, quiet: bool, note: Callable[[str], None]
) -> MindSporeEngine:
    """Load the weights of `model_dir` and make room for one conversation of `context_tokens`.

    Raises:
        BuildError: Native kernels are asked for and cannot be compiled.
    """
    model = load_model(model_dir, choose_kernels(device, note), quiet=quiet)
    return MindSporeEngine(model, 1, context_tokens, reuses_beginnings=True)


def choose_kernels(device: Device, note: Callable[[str], None]) -> Kernels:
    """Choose `device` and return its kernels; `note` is told when native ones cannot be had."""
    if ms.get_context("device_target") != device.target:  # MindSpore refuses the call once it has computed
        ms.set_device(device.target)
    if device.target == "CPU" and device.kernels != "portable":
        try:
            return NativeKernels(native_library(device.cache_dir, device.num_threads))
        except BuildError as error:
            if device.kernels == "native":
                raise
            note(f"{error}; going on with MindSpore's own operators, several times slower")
    return make_kernels(device.target)


def load_model(model_dir: Path, kernels: Kernels, *, quiet: bool) -> Qwen3ForCausalLM:
    """Return the model with its weights; native kernels leave bfloat16 ones as they are stored."""
    folder = open_hf_folder(model_dir)
    dtype = kernels.compute_dtype
    if isinstance(kernels, NativeKernels) and all(
        folder.info(name).dtype == "BF16" for name in folder.tensors
    ):
        dtype = ms.bfloat16
    model = Qwen3ForCausalLM(folder.config, kernels, param_dtype=dtype)
    load_hf(model, model_dir, quiet=quiet)
    return model


def _num_equal(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids two sequences have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _one(value: int) -> Tensor:
    return Tensor(np.array([value], np.int32))
