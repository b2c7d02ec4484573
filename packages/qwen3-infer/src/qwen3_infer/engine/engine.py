"""The model in MindSpore's graphs behind two calls: read a piece of a prompt, add a token to some requests.

Prompts are read in pieces of two fixed lengths and batches have few sizes, so that there are few graphs
whatever the prompts' lengths and however many run. B requests in a batch, L length, V vocabulary.
"""

from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor

from qwen3_infer.device import Device
from qwen3_infer.engine.device_step import WithLikeliest
from qwen3_infer.engine.rooms import make_rooms
from qwen3_infer.engine.tensor_parallel import WholeLogits, shard_config
from qwen3_infer.native.build import find_library, rounds_inputs
from qwen3_infer.native.chooser import NativeChooser
from qwen3_infer.native.kernels import NativeKernels
from qwen3_infer.sampling.logits import LikeliestRows, Logits
from qwen3_model.device.ascend import choose_device
from qwen3_model.network.cache import Rows as CacheRows
from qwen3_model.network.kernels.ascend import AscendKernels
from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.kernels.seam import Kernels
from qwen3_model.network.model import CachedQwen3, Qwen3ForCausalLM, name_parameters


class MindSporeEngine:
    """Prefill and decoding in graph mode, compiled at their first use; `NativeEngine` has the same methods.

    With native kernels, and on a device, a request has a region of the cache as long as it needs, and a batch
    is computed at the next of a few sizes. MindSpore's own operators for a CPU want rows of one length, and
    sum in an order that depends on the batch: there every request has a row, and all rows are computed.
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
        self.shares_beginnings = (
            isinstance(model.kernels, NativeKernels) if shares_beginnings is None else shares_beginnings
        )
        kernels = model.kernels
        self.chooser = NativeChooser(kernels.library) if isinstance(kernels, NativeKernels) else None
        """What chooses tokens in less time than numpy."""
        config = shard_config(model.config, model.tp)
        self._rooms = make_rooms(model.kernels, config, num_rows, context_tokens, num_tokens)
        self.unit, self.pieces = self._rooms.unit, self._rooms.pieces
        self.num_rows, self.num_tokens = self._rooms.num_rows, self._rooms.num_tokens
        self.longest = self._rooms.longest
        """Most tokens of one request."""
        cell = (CachedQwen3 if model.tp.size == 1 else WholeLogits)(model, self._rooms.cache)
        self._is_device = isinstance(model.kernels, AscendKernels)
        step = WithLikeliest(cell) if self._is_device else cell
        step.set_train(False)
        name_parameters(model)
        self._step = ms.jit(step.construct)

    def read(self, start: int, ids: Sequence[int], position: int, length: int) -> Logits:
        """Add `ids` to the region at `start`, from `position` on, filled up to `length`.

        Returns:
            The logits after the last of `ids`.
        """
        assert start + position + length <= self.num_tokens, "a piece lies in the cache"
        ids_BL = np.zeros((1, length), np.int32)
        ids_BL[0, : len(ids)] = ids
        positions_BL = np.arange(position, position + length, dtype=np.int32)[None]
        where = self._rooms.piece(start, position, length)
        return self._rows(Tensor(ids_BL), Tensor(positions_BL), _make_scalar(len(ids) - 1), where)[0]

    def read_all(self, start: int, ids: Sequence[int], position: int, length: int) -> np.ndarray:
        """Do the same as `read`, and return the logits after each of `ids`, float32 (len(ids), V)."""
        ids_BL = np.zeros((1, length), np.int32)
        ids_BL[0, : len(ids)] = ids
        positions_BL = np.arange(position, position + length, dtype=np.int32)[None]
        where = self._rooms.piece(start, position, length)
        every = Tensor(np.arange(length, dtype=np.int32))
        rows = self._rows(Tensor(ids_BL), Tensor(positions_BL), every, where)
        if isinstance(rows, LikeliestRows):
            return np.stack([rows.whole(row) for row in range(len(ids))])
        return rows[: len(ids)]

    def decode(self, starts_B: np.ndarray, tokens_B: np.ndarray, positions_B: np.ndarray) -> Sequence[Logits]:
        """Add one token to each of B regions, at its position; return the logits after each."""
        tokens_R, positions_R, where = self._rooms.batch(starts_B, tokens_B, positions_B)
        last_R = Tensor(np.zeros(len(tokens_R), np.int32))
        rows = self._rows(Tensor(tokens_R[:, None]), Tensor(positions_R[:, None]), last_R, where)
        return [rows[row] for row in self._rooms.picked(starts_B)]

    def _rows(self, *arguments: CacheRows) -> np.ndarray | LikeliestRows:
        """Return each row's logits; from a device only the likeliest come at once."""
        if not self._is_device:
            return self._step(*arguments).asnumpy()
        logits_RV, values_RC, ids_RC = self._step(*arguments)
        return LikeliestRows(logits_RV, values_RC, ids_RC)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens`, a multiple of the shortest piece, of one region to another."""
        self._rooms.copy(source, target, num_tokens)

    def warm_up(self) -> None:
        """Compile everything that requests may need."""
        lengths = [length for length in self.pieces if length <= self.num_tokens]
        for length in lengths:
            for position in self._rooms.warm_up_positions(length):
                self.read(0, [0], position, length)
        idle = [self._rooms.batch(*self._idle_tokens(count)) for count in range(1, self.num_rows + 1)]
        for size in sorted({len(tokens_R) for tokens_R, _, _ in idle}):
            self.decode(*self._idle_tokens(size))
        for length in lengths:
            if self.shares_beginnings and 2 * length <= self.num_tokens:
                self.copy(0, length, length)

    def _idle_tokens(self, count: int) -> np.ndarray:
        """Return where `count` tokens go that belong to nobody: (3, count), starts, tokens, positions."""
        return np.array([[0], [0], [0]], np.int32).repeat(count, 1)


def choose_kernels(device: Device, note: Callable[[str], None]) -> Kernels:
    """Choose `device` and return its kernels; `note` gets a sentence where native ones cannot be had."""
    choose_device(device.target, device.ascend)
    if library := find_library(device, note):
        return NativeKernels(library, rounds_inputs=rounds_inputs(device))
    is_float32 = device.ascend is not None and device.ascend.float32_residual
    return make_kernels(device.target, float32_residual=is_float32)


def _make_scalar(value: int) -> Tensor:
    return Tensor(np.array([value], np.int32))
