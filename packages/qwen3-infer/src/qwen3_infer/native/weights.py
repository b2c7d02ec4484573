"""The weights of a model as the native kernels read them, without MindSpore.

V vocabulary, D hidden, R rank.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_infer.native.structures import AdapterFields
from qwen3_model.checkpoints.adapters import EMBEDDING, HEAD, AdapterSet
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.checkpoints.weight_values import make_room, read_bits, read_float32
from qwen3_model.command.progress import Progress
from qwen3_model.config import Qwen3Config


@dataclass(frozen=True, slots=True)
class NativeAdapter:
    """A LoRA adapter, float32: `b` times `scale` times `a` times the inputs is added to a product."""

    a: NDArray[np.float32]
    """(R, inputs); for the embedding (V, R)."""
    b: NDArray[np.float32]
    """(outputs, R)."""
    scale: float

    def fields(self) -> AdapterFields:
        """Return where the arrays are, which must live as long as it is used."""
        return AdapterFields(self.a.ctypes.data, self.b.ctypes.data, self.b.shape[1], self.scale)


@dataclass(frozen=True, slots=True)
class NativeWeights:
    """All weights of a model, and its adapter beside them."""

    arrays: dict[str, NDArray[np.generic]]
    """Weights by name: norms in float32; all matrices as bits of bfloat16 in uint16, or all in float32."""
    adapters: dict[str, NativeAdapter]
    """Adapters by module, such as `model.layers.0.self_attn.q_proj`, `model.embed_tokens` or `lm_head`."""
    is_bfloat16: bool
    """Whether the matrices are."""


def load_weights(
    config: Qwen3Config, weights: Tensors, adapter: AdapterSet | None, *, quiet: bool
) -> NativeWeights:
    """Read the weights of `config`, which fit it; they stay in bfloat16 when all of them are stored in it.

    Raises:
        FormatError: A file has become shorter, or cannot be read.
    """
    shapes = config.weight_shapes()
    is_bfloat16 = all(weights.dtype(name) == "BF16" for name in shapes)
    arrays: dict[str, NDArray[np.generic]] = {}
    parts = {name: weights.part(name) for name in shapes}
    with Progress("weights", sum(part.nbytes for _, part in parts.values()), "B", quiet=quiet) as progress:
        for name, (dtype, part) in parts.items():
            if is_bfloat16 and len(part.shape) > 1:
                bits = arrays[name] = make_room(part.shape, np.uint16)
                read_bits(part, bits)
            else:
                values = arrays[name] = make_room(part.shape, np.float32)
                read_float32(dtype, part, values)
            progress.advance(part.nbytes)
    return NativeWeights(arrays, _adapters(config, adapter) if adapter else {}, is_bfloat16)


def _adapters(config: Qwen3Config, adapter: AdapterSet) -> dict[str, NativeAdapter]:
    scale, found = adapter.scale, {}
    for module, halves in adapter.modules.items():
        a, b = np.ascontiguousarray(halves.a), np.ascontiguousarray(halves.b)
        if module != EMBEDDING:
            found[module] = NativeAdapter(a, b, scale)
            continue
        a_VR = np.ascontiguousarray(a.T)
        found[EMBEDDING] = NativeAdapter(a_VR, b, scale)
        if config.tie_word_embeddings:
            found[HEAD] = NativeAdapter(np.ascontiguousarray(b.T), a_VR, scale)
    return found
