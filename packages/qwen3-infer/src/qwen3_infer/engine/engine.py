"""The model on MindSpore behind two calls: read a piece of a prompt, add a token to some requests.

Prompts are read in pieces of two fixed lengths and batches have few sizes, so that there are few graphs
whatever the prompts' lengths and however many run. B requests in a batch, L length, V vocabulary.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from qwen3_infer.device import Device
from qwen3_infer.engine.jobs import BatchLimits, tokens_needed
from qwen3_infer.engine.loading import load_model
from qwen3_infer.engine.pieces import ALIGN, PIECES, round_up
from qwen3_infer.engine.pooled_cache import CacheCopy, PooledCache, slots
from qwen3_infer.engine.tensor_parallel import WholeLogits, is_so_everywhere, shard_config
from qwen3_infer.model_folder import ModelFolder
from qwen3_infer.native.build import BuildError, native_library, require_bfloat16
from qwen3_infer.native.kernels import NativeKernels
from qwen3_infer.requests import Request
from qwen3_model.ascend_settings import choose_device
from qwen3_model.cache import KVCache
from qwen3_model.kernels import make_kernels
from qwen3_model.layers import Kernels
from qwen3_model.model import CachedQwen3, Qwen3ForCausalLM
from qwen3_model.shards import Tp


class MindSporeEngine:
    """Prefill and decoding in graph mode, compiled at their first use.

    With native kernels a request has a region of the cache as long as it needs, and a batch is computed at
    the next of a few sizes. MindSpore's own operators want rows of one length, and sum in an order that
    depends on the batch: there every request has a row, and all rows are computed.
    """

    def __init__(
        self,
        model: Qwen3ForCausalLM,
        num_rows: int,
        context_tokens: int,
        *,
        num_tokens: int | None = None,
        shares_beginnings: bool | None = None,
    ) -> None:
        """Make room for `num_rows` requests at once.

        Args:
            model: With its weights.
            num_rows: Most requests that run at once.
            context_tokens: The longest, prompt and completion together.
            num_tokens: Room of the cache; enough for `num_rows` of the longest when left out.
            shares_beginnings: Whether what was read for one prompt is used for the next; when left out, with
                native kernels alone, whose bits do not depend on how a prompt was cut.
        """
        is_pooled = isinstance(model.kernels, NativeKernels)
        self.shares_beginnings = is_pooled if shares_beginnings is None else shares_beginnings
        # The slot after the longest request is where a row without a request writes.
        longest = round_up(context_tokens, ALIGN) if is_pooled else round_up(context_tokens + 1, PIECES[0])
        wanted = num_rows * longest if num_tokens is None else num_tokens
        self.unit = ALIGN if is_pooled else longest
        self.num_rows = num_rows if is_pooled else max(1, min(num_rows, wanted // longest))
        self.num_tokens = round_up(max(wanted, longest), ALIGN) if is_pooled else self.num_rows * longest
        self.longest = self.num_tokens if is_pooled else longest - 1
        """Most tokens of one request."""
        self._is_pooled = is_pooled
        dtype, config = model.kernels.compute_dtype, shard_config(model.config, model.tp)
        if is_pooled:
            cache: KVCache = PooledCache(config, self.num_tokens + ALIGN, dtype)
        else:
            cache = model.kernels.make_cache(config, self.num_rows, longest)
        cell = CachedQwen3(model, cache) if model.tp.size == 1 else WholeLogits(model, cache)
        cell.set_train(False)
        self._step = ms.jit(cell.construct)
        self._copy = ms.jit(CacheCopy(cache).construct) if isinstance(cache, PooledCache) else None

    def read(self, start: int, ids: Sequence[int], position: int, length: int) -> np.ndarray:
        """Add `ids` to the region at `start`, from `position` on, filled up to `length`.

        Returns:
            The logits after the last of `ids`, float32 (V,).
        """
        assert start + position + length <= self.num_tokens, "a piece lies in the cache"
        ids_BL = np.zeros((1, length), np.int32)
        ids_BL[0, : len(ids)] = ids
        positions_BL = np.arange(position, position + length, dtype=np.int32)[None]
        place = start if self._is_pooled else start // self.unit
        return self._step(Tensor(ids_BL), Tensor(positions_BL), _one(len(ids) - 1), _one(place)).asnumpy()[0]

    def decode(self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray) -> np.ndarray:
        """Add one token to each of B regions, at its position; return the logits after it, float32 (B, V)."""
        if self._is_pooled:
            return self._decode_some(starts_B, tokens_B, positions_B)
        rows_B = starts_B // self.unit
        tokens_R = np.zeros(self.num_rows, np.int32)
        positions_R = np.full(self.num_rows, self.unit - 1, np.int32)
        tokens_R[rows_B], positions_R[rows_B] = tokens_B, positions_B
        logits_RV = self._step(
            Tensor(tokens_R[:, None]), Tensor(positions_R[:, None]), Tensor(np.zeros(self.num_rows, np.int32))
        )
        return logits_RV.asnumpy()[rows_B]

    def _decode_some(self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray) -> np.ndarray:
        count = len(starts_B)
        size = batch_size(count)
        filled = [np.zeros(size, np.int32) for _ in range(3)]
        filled[0][count:] = self.num_tokens  # the room behind all regions
        for target, values_B in zip(filled, (starts_B, tokens_B, positions_B), strict=True):
            target[:count] = values_B
        starts, tokens, positions = filled
        logits = self._step(
            Tensor(tokens[:, None]),
            Tensor(positions[:, None]),
            Tensor(np.zeros(size, np.int32)),
            Tensor(starts),
        )
        return logits.asnumpy()[:count]

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens`, a multiple of `ALIGN`, of one region to another."""
        assert self._copy is not None, "rows of one length are not copied"
        at = 0
        while at < num_tokens:
            length = next(piece for piece in PIECES if piece <= num_tokens - at)
            self._copy(slots(source + at, length), slots(target + at, length)).asnumpy()
            at += length

    def warm_up(self) -> None:
        """Compile everything that requests may need."""
        lengths = [length for length in PIECES if length <= self.num_tokens]
        for length in lengths:
            self.read(0, [0], 0, length)
        if not self._is_pooled:
            self.decode(*np.zeros((3, 1), np.int32))
            return
        for size in sorted({batch_size(count) for count in range(1, self.num_rows + 1)}):
            self.decode(*np.full((3, size), [[self.num_tokens], [0], [0]], np.int32))
        for length in lengths:
            if self.shares_beginnings and 2 * length <= self.num_tokens:
                self.copy(0, length, length)


def batch_size(num_requests: int) -> int:
    """Return the number of rows that a batch is computed with: few sizes, and few idle rows."""
    return num_requests if num_requests <= 2 else round_up(num_requests, 4)


def make_engine(
    folder: Path | ModelFolder,
    requests: Sequence[Request],
    device: Device,
    *,
    limits: BatchLimits,
    quiet: bool,
    note: Callable[[str], None],
    tp: Tp | None = None,
) -> MindSporeEngine:
    """Load the weights of `folder`, or `tp`'s shard of them, and make room for the longest of `requests`.

    That is room for so many of them at once as `limits` says.

    Raises:
        BuildError: Native kernels are asked for and cannot be compiled.
    """
    kernels = choose_kernels(device, note)
    if tp is not None and device.target == "CPU":
        is_native = isinstance(kernels, NativeKernels)
        if not is_so_everywhere(tp, is_native) and is_native:
            note("another process has no native kernels; going on with MindSpore's own operators in all")
            kernels = make_kernels(device.target)
    model = load_model(folder, kernels, quiet=quiet, tp=tp)
    lengths = sorted(map(tokens_needed, requests), reverse=True)
    num_rows, num_tokens = min(limits.num_requests, len(requests)), limits.num_tokens
    if num_tokens is None and isinstance(kernels, NativeKernels):
        num_tokens = sum(round_up(length, ALIGN) for length in lengths[:num_rows])
    return MindSporeEngine(model, num_rows, lengths[0], num_tokens=num_tokens)


def make_chat_engine(
    folder: Path | ModelFolder,
    device: Device,
    *,
    context_tokens: int,
    quiet: bool,
    note: Callable[[str], None],
) -> MindSporeEngine:
    """Load the weights of `folder` and make room for one conversation of `context_tokens`.

    Raises:
        BuildError: Native kernels are asked for and cannot be compiled.
    """
    model = load_model(folder, choose_kernels(device, note), quiet=quiet)
    return MindSporeEngine(model, 1, context_tokens, shares_beginnings=True)


def make_serve_engine(
    folder: Path | ModelFolder,
    device: Device,
    *,
    num_rows: int,
    num_tokens: int,
    context_tokens: int,
    quiet: bool,
    note: Callable[[str], None],
) -> MindSporeEngine:
    """Load the weights of `folder`, make room for `num_tokens` of `num_rows` requests, and compile.

    Without native kernels each request has an equal share of the room, whatever its length.

    Raises:
        BuildError: Native kernels are asked for and cannot be compiled.
    """
    model = load_model(folder, choose_kernels(device, note), quiet=quiet)
    if not isinstance(model.kernels, NativeKernels):
        context_tokens = max(1, min(context_tokens, num_tokens // num_rows - 1))
    engine = MindSporeEngine(model, num_rows, context_tokens, num_tokens=num_tokens)
    engine.warm_up()
    return engine


def choose_kernels(device: Device, note: Callable[[str], None]) -> Kernels:
    """Choose `device` and return its kernels; `note` is told when native ones cannot be had."""
    choose_device(device.target, device.ascend)
    if device.target == "CPU" and device.kernels != "portable":
        try:
            library = native_library(device.cache_dir, device.num_threads)
            if device.kernels == "native-bf16":
                require_bfloat16(library)
            return NativeKernels(library, rounds_inputs=device.kernels == "native-bf16")
        except BuildError as error:
            if device.kernels != "auto":
                raise
            note(f"{error}; going on with MindSpore's own operators, several times slower")
    return make_kernels(device.target)


def _one(value: int) -> Tensor:
    return Tensor(np.array([value], np.int32))
