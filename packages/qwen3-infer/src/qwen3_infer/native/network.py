"""A model and a cache in the compiled kernels, called without MindSpore.

B rows, L new tokens a row, M rows (B * L), D hidden, V vocabulary, N layers, J key/value heads, T tokens of
the cache, H head_dim.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_infer.native.structures import (
    MATRICES,
    NORMS,
    AdapterFields,
    LayerFields,
    ModelFields,
    TokenFields,
)
from qwen3_infer.native.weights import NativeWeights
from qwen3_model.checkpoints.adapters import EMBEDDING, HEAD
from qwen3_model.config import Qwen3Config
from qwen3_model.network.rope import rope_frequencies


class NativeNetwork:
    """From ids to hidden states and to logits; keys and values stay in the cache.

    A row's result has the same bits in any batch, and however its prompt is cut.
    """

    def __init__(
        self,
        config: Qwen3Config,
        weights: NativeWeights,
        library: Path,
        *,
        rounds_inputs: bool,
        cache_tokens: int,
    ) -> None:
        """Make room for `cache_tokens` of all requests together.

        Args:
            config: The model's sizes.
            weights: Its weights.
            library: Compiled for this machine.
            rounds_inputs: Whether products with bfloat16 weights round their inputs to bfloat16.
            cache_tokens: Tokens of the cache.
        """
        self._vocab_size, self._hidden_size = config.vocab_size, config.hidden_size
        shape = (2, config.num_layers, config.num_kv_heads, cache_tokens, config.head_dim)
        try:  # takes memory only where tokens are written
            self._cache_2NJTH = np.zeros(shape, np.float32)
        except ValueError as error:  # NumPy's, of more than any machine can address
            raise MemoryError(str(error)) from None
        self._weights = weights
        frequencies_H, turn_scale = rope_frequencies(config)
        self._frequencies_H = np.ascontiguousarray(frequencies_H, np.float32)
        self._layers = (LayerFields * config.num_layers)(*map(self._layer, range(config.num_layers)))
        embedding = weights.arrays[f"{EMBEDDING}.weight"]
        head = embedding if config.tie_word_embeddings else weights.arrays[f"{HEAD}.weight"]
        self._model = ModelFields(
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            width=config.head_dim,
            vocabulary=config.vocab_size,
            cache_tokens=cache_tokens,
            eps=config.rms_norm_eps,
            turn_scale=turn_scale,
            is_bfloat16=weights.is_bfloat16,
            rounds_inputs=rounds_inputs,
            embedding=embedding.ctypes.data,
            head=head.ctypes.data,
            norm=self._address("model.norm.weight"),
            frequencies=self._frequencies_H.ctypes.data,
            embedding_adapter=self._adapter(EMBEDDING),
            head_adapter=self._adapter(HEAD),
            layers=self._layers,
        )
        functions = ctypes.CDLL(str(library))
        self._hidden, self._head = functions.qwen3_hidden, functions.qwen3_head
        self._hidden.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p
        self._head.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p

    def hidden(
        self,
        ids_BL: NDArray[np.int32],
        positions_BL: NDArray[np.int32],
        starts_B: NDArray[np.int32],
        num_last: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the hidden states (M, D) after the last norm, and keep keys and values.

        Args:
            ids_BL: Tokens.
            positions_BL: Consecutive in each row; each token sees its region from position 0 to its own.
            starts_B: Where the regions of the rows begin in the cache.
            num_last: How many tokens' states are wanted, the last of one row; all when left out.
        """
        b, length = ids_BL.shape
        arrays = [np.ascontiguousarray(each, np.int32) for each in (ids_BL, positions_BL, starts_B)]
        tokens = TokenFields(b, length, *(each.ctypes.data for each in arrays))
        wanted = b * length if num_last is None else num_last
        hidden_MD = np.empty((wanted, self._hidden_size), np.float32)
        failed = self._hidden(ctypes.byref(self._model), ctypes.byref(tokens), wanted, hidden_MD.ctypes.data)
        if failed:
            raise RuntimeError("tokens lie outside the vocabulary or the cache")
        return hidden_MD

    def hidden_of_row(
        self, start: int, ids: Sequence[int], position: int, num_last: int | None = None
    ) -> NDArray[np.float32]:
        """Do the same for one row, whose region begins at `start`, from `position` on."""
        ids_BL = np.array([ids], np.int32)
        positions_BL = np.arange(position, position + len(ids), dtype=np.int32)[None]
        return self.hidden(ids_BL, positions_BL, np.array([start], np.int32), num_last)

    def logits(self, hidden_MD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits (M, V) of hidden states."""
        hidden_MD = np.ascontiguousarray(hidden_MD, np.float32)
        logits_MV = np.empty((len(hidden_MD), self._vocab_size), np.float32)
        failed = self._head(
            ctypes.byref(self._model), hidden_MD.ctypes.data, len(hidden_MD), logits_MV.ctypes.data
        )
        assert not failed, "the kernels have a product for these weights"
        return logits_MV

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy tokens of the cache to others, which do not overlap."""
        cache = self._cache_2NJTH
        cache[..., target : target + num_tokens, :] = cache[..., source : source + num_tokens, :]

    def _layer(self, number: int) -> LayerFields:
        prefix = f"model.layers.{number}"
        fields = LayerFields()
        fields.norms[:] = [self._address(f"{prefix}.{name}.weight") for name in NORMS]
        fields.matrices[:] = [self._address(f"{prefix}.{name}.weight") for name in MATRICES]
        fields.adapters[:] = [self._adapter(f"{prefix}.{name}") for name in MATRICES]
        fields.keys, fields.values = (self._cache_2NJTH[i, number].ctypes.data for i in (0, 1))
        return fields

    def _address(self, name: str) -> int:
        return self._weights.arrays[name].ctypes.data

    def _adapter(self, module: str) -> AdapterFields:
        adapter = self._weights.adapters.get(module)
        return adapter.fields() if adapter else AdapterFields()
