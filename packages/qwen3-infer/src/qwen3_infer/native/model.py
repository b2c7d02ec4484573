"""A model in this process, computed by native kernels without MindSpore, and what is made of it."""

from pathlib import Path

from qwen3_infer.native.chooser import NativeChooser
from qwen3_infer.native.engine import NativeEngine, cache_tokens
from qwen3_infer.native.network import NativeNetwork
from qwen3_infer.native.reader import NativeReader
from qwen3_infer.native.weights import load_weights
from qwen3_infer.steps.pieces import ALIGN
from qwen3_infer.steps.score_engine import Scorer
from qwen3_model.checkpoints.adapters import AdapterSet
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.config import Qwen3Config


class NativeModel:
    """Weights in this process; `MindSporeModel` has the same methods."""

    compute_dtype = "Float32"
    """The type that the model computes in."""
    room_unit = ALIGN
    """Requests get room as they need it, in this unit."""

    def __init__(
        self,
        config: Qwen3Config,
        weights: Tensors,
        adapter: AdapterSet | None,
        library: Path,
        *,
        rounds_inputs: bool,
        quiet: bool,
    ) -> None:
        """Load `weights`, which fit `config`, and the adapter that goes on them.

        Args:
            config: The model's sizes.
            weights: In files.
            adapter: LoRA's, or None.
            library: The compiled kernels.
            rounds_inputs: Whether products round their inputs to bfloat16.
            quiet: Whether progress is left out.
        """
        self._config, self._library, self._rounds_inputs = config, library, rounds_inputs
        self._weights = load_weights(config, weights, adapter, quiet=quiet)

    def check(self) -> None:
        """Raise what has ended a process that shares the model out; here there is none."""

    def engine(self, num_rows: int, context_tokens: int, num_tokens: int | None = None) -> NativeEngine:
        """Make room for `num_rows` requests of up to `context_tokens`, or for `num_tokens` of all of them."""
        num_tokens = cache_tokens(num_rows, context_tokens, num_tokens)
        return NativeEngine(self._network(num_tokens), NativeChooser(self._library), num_rows, num_tokens)

    def chat_engine(self, context_tokens: int) -> NativeEngine:
        """Make room for one conversation."""
        return self.engine(1, context_tokens)

    def serve_engine(self, num_rows: int, num_tokens: int, context_tokens: int) -> NativeEngine:
        """Make room for `num_tokens` of `num_rows` requests."""
        return self.engine(num_rows, context_tokens, num_tokens)

    def scorer(self, max_tokens: int) -> Scorer:
        """Make a scorer of sequences of which the model reads at most `max_tokens`."""
        return Scorer(NativeReader(self._network(max_tokens)), max_tokens)

    def _network(self, num_tokens: int) -> NativeNetwork:
        return NativeNetwork(
            self._config,
            self._weights,
            self._library,
            rounds_inputs=self._rounds_inputs,
            cache_tokens=num_tokens,
        )
