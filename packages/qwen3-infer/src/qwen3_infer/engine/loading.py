"""From opened files to a model of MindSpore's ready to run, or to one rank's shard of it."""

import mindspore as ms
import numpy as np

from qwen3_infer.engine.adapted_embedding import AdaptedEmbedding
from qwen3_infer.native.kernels import NativeKernels
from qwen3_model.checkpoints.adapters import EMBEDDING, AdapterSet
from qwen3_model.checkpoints.tensors import Tensors
from qwen3_model.command.progress import Progress
from qwen3_model.config import Qwen3Config
from qwen3_model.network.kernels.seam import Kernels
from qwen3_model.network.loading import fill, own_slices
from qwen3_model.network.lora import add_lora
from qwen3_model.network.model import Qwen3ForCausalLM, name_parameters
from qwen3_model.ranks.layout import shard_slices
from qwen3_model.ranks.shards import Tp


def build_model(
    config: Qwen3Config,
    weights: Tensors,
    adapter: AdapterSet | None,
    kernels: Kernels,
    *,
    quiet: bool = True,
    tp: Tp | None = None,
) -> Qwen3ForCausalLM:
    """Return the model with `weights`, of which each rank reads its shard alone.

    Native kernels leave bfloat16 weights as they are stored. An adapter stays beside the weights, in float32.

    Args:
        config: The model's sizes.
        weights: Which fit it.
        adapter: LoRA's, or None.
        kernels: The device's kernels.
        quiet: Whether progress is left out.
        tp: This rank among those that share the model out.
    """
    dtype = kernels.compute_dtype
    if isinstance(kernels, NativeKernels) and all(
        weights.dtype(name) == "BF16" for name in config.weight_shapes()
    ):
        dtype = ms.bfloat16
    model = Qwen3ForCausalLM(config, kernels, param_dtype=dtype, tp=tp)
    _fill(model, weights, quiet=quiet)
    if adapter is not None:
        _add(model, adapter)
    return model


def _fill(model: Qwen3ForCausalLM, weights: Tensors, *, quiet: bool) -> None:
    parameters = dict(model.parameters_and_names())
    total_bytes = sum(parameter.nbytes for parameter in parameters.values())
    with Progress("weights", total_bytes, "B", quiet=quiet) as progress:
        for name, parameter in parameters.items():
            fill(parameter, *weights.part(name, own_slices(model, name)))
            progress.advance(parameter.nbytes)


def _add(model: Qwen3ForCausalLM, adapter: AdapterSet) -> None:
    def part(name: str, values: np.ndarray) -> np.ndarray:
        return values[shard_slices(name, values.shape, tp=model.tp.size, shard=model.tp.index)]

    linear = [module for module in adapter.modules if module != EMBEDDING]
    add_lora(model, linear, rank=adapter.rank, alpha=adapter.alpha, dropout=0.0, dtype=ms.float32)
    parameters = dict(model.parameters_and_names())
    for module in linear:
        halves = adapter.modules[module]
        for half, values in (("A", halves.a), ("B", halves.b)):
            name = f"{module}.lora_{half}.weight"
            fill(parameters[name], "F32", part(name, values))
    if EMBEDDING in adapter.modules:
        halves = adapter.modules[EMBEDDING]
        own = part(f"{EMBEDDING}.lora_A.weight", halves.a)
        model.model.embed_tokens = AdaptedEmbedding(
            model.model.embed_tokens, own, halves.b, adapter.scale, name=EMBEDDING
        )
        name_parameters(model)
