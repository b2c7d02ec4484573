"""A model in this process, or one shard of a model in each of several, and what is made of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from qwen3_infer.device import Device
from qwen3_infer.engine.engine import MindSporeEngine, choose_kernels
from qwen3_infer.engine.jobs import BatchLimits, tokens_needed
from qwen3_infer.engine.loading import load_model
from qwen3_infer.engine.pieces import round_up
from qwen3_infer.engine.rooms import room_unit
from qwen3_infer.engine.tensor_parallel import is_so_everywhere
from qwen3_infer.evaluate.score_engine import Scorer
from qwen3_infer.model_folder import ModelFolder
from qwen3_infer.native.kernels import NativeKernels
from qwen3_infer.requests import Request
from qwen3_model.kernels import make_kernels
from qwen3_model.layers import Kernels
from qwen3_model.shards import Tp


class LocalModel:
    """Weights in this process; `RemoteModel` has the same methods."""

    def __init__(
        self,
        folder: ModelFolder,
        device: Device,
        *,
        quiet: bool,
        note: Callable[[str], None],
        tp: Tp | None = None,
    ) -> None:
        """Load the weights of `folder`, or `tp`'s shard of them.

        Raises:
            BuildError: Native kernels are asked for and cannot be compiled.
        """
        self.model = load_model(folder, agreed_kernels(device, tp, note), quiet=quiet, tp=tp)

    @property
    def compute_dtype(self) -> str:
        """The type that the model computes in."""
        return str(self.model.kernels.compute_dtype)

    def check(self) -> None:
        """Raise what has ended a process that shares the model out; here there is none."""

    def engine(self, num_rows: int, context_tokens: int) -> MindSporeEngine:
        """Make room for `num_rows` requests of up to `context_tokens`."""
        return MindSporeEngine(self.model, num_rows, context_tokens)

    def chat_engine(self, context_tokens: int) -> MindSporeEngine:
        """Make room for one conversation."""
        return MindSporeEngine(self.model, 1, context_tokens, shares_beginnings=True)

    def serve_engine(self, num_rows: int, num_tokens: int, context_tokens: int) -> MindSporeEngine:
        """Make room for `num_tokens` of `num_rows` requests, and compile everything.

        With MindSpore's own operators on a CPU each request has an equal share of the room, whatever its
        length.
        """
        if room_unit(self.model.kernels) is None:
            context_tokens = max(1, min(context_tokens, num_tokens // num_rows - 1))
        engine = MindSporeEngine(self.model, num_rows, context_tokens, num_tokens=num_tokens)
        engine.warm_up()
        return engine

    def scorer(self, max_tokens: int) -> Scorer:
        """Make a scorer of sequences of which the model reads at most `max_tokens`."""
        return Scorer(self.model, max_tokens)


def agreed_kernels(device: Device, tp: Tp | None, note: Callable[[str], None]) -> Kernels:
    """Choose `device` and return the kernels that all processes can have; `note` is told of others."""
    kernels = choose_kernels(device, note)
    if tp is not None and device.target == "CPU":
        is_native = isinstance(kernels, NativeKernels)
        if not is_so_everywhere(tp, is_native) and is_native:
            note("another process has no native kernels; going on with MindSpore's own operators in all")
            return make_kernels(device.target)
    return kernels


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
    kernels = agreed_kernels(device, tp, note)
    model = load_model(folder, kernels, quiet=quiet, tp=tp)
    lengths = sorted(map(tokens_needed, requests), reverse=True)
    num_rows, num_tokens = min(limits.num_requests, len(requests)), limits.num_tokens
    if num_tokens is None and (unit := room_unit(kernels)):
        num_tokens = sum(round_up(length, unit) for length in lengths[:num_rows])
    return MindSporeEngine(model, num_rows, lengths[0], num_tokens=num_tokens)
