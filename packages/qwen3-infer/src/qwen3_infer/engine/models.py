"""A model in MindSpore's graphs: whole in this process, or one shard of it in each of several."""

from collections.abc import Callable

from qwen3_infer.device import Device
from qwen3_infer.engine.engine import MindSporeEngine, choose_kernels
from qwen3_infer.engine.loading import build_model
from qwen3_infer.engine.reader import MindSporeReader
from qwen3_infer.engine.rooms import room_unit
from qwen3_infer.engine.tensor_parallel import is_so_everywhere
from qwen3_infer.native.kernels import NativeKernels
from qwen3_infer.steps.score_engine import Scorer
from qwen3_model.checkpoints.adapters import AdapterSet
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.config import Qwen3Config
from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.kernels.seam import Kernels
from qwen3_model.ranks.shards import Tp


class MindSporeModel:
    """Weights in this process; `NativeModel` and `RemoteModel` have the same methods."""

    def __init__(
        self,
        config: Qwen3Config,
        weights: Tensors,
        adapter: AdapterSet | None,
        kernels: Kernels,
        *,
        quiet: bool,
        tp: Tp | None = None,
    ) -> None:
        """Load `weights`, which fit `config`, or `tp`'s shard of them, and the adapter that goes on them."""
        self._model = build_model(config, weights, adapter, kernels, quiet=quiet, tp=tp)
        self.room_unit = room_unit(kernels)
        """Unit in which requests get room as they need it; None where all have the same."""

    @property
    def compute_dtype(self) -> str:
        """The type that the model computes in."""
        return str(self._model.kernels.compute_dtype)

    def check(self) -> None:
        """Raise what has ended a process that shares the model out; here there is none."""

    def engine(self, num_rows: int, context_tokens: int, num_tokens: int | None = None) -> MindSporeEngine:
        """Make room for `num_rows` requests of up to `context_tokens`, or for `num_tokens` of all of them."""
        return MindSporeEngine(self._model, num_rows, context_tokens, num_tokens=num_tokens)

    def chat_engine(self, context_tokens: int) -> MindSporeEngine:
        """Make room for one conversation."""
        return MindSporeEngine(self._model, 1, context_tokens, shares_beginnings=True)

    def serve_engine(self, num_rows: int, num_tokens: int, context_tokens: int) -> MindSporeEngine:
        """Make room for `num_tokens` of `num_rows` requests, and compile everything.

        With MindSpore's own operators on a CPU each request has an equal share of the room, whatever its
        length.
        """
        if self.room_unit is None:
            context_tokens = max(1, min(context_tokens, num_tokens // num_rows - 1))
        engine = self.engine(num_rows, context_tokens, num_tokens)
        engine.warm_up()
        return engine

    def scorer(self, max_tokens: int) -> Scorer:
        """Make a scorer of sequences of which the model reads at most `max_tokens`."""
        return Scorer(MindSporeReader(self._model, max_tokens), max_tokens)


def agreed_kernels(device: Device, tp: Tp | None, note: Callable[[str], None]) -> Kernels:
    """Choose `device` and return kernels that all processes can have; `note` gets a sentence on others."""
    kernels = choose_kernels(device, note)
    if tp is not None and device.target == "CPU":
        is_native = isinstance(kernels, NativeKernels)
        if not is_so_everywhere(tp, is_native) and is_native:
            note("another process has no native kernels; going on with MindSpore's own operators in all")
            return make_kernels(device.target)
    return kernels
