"""The memory of a device, part by part, for each pipeline stage.

Parameters, gradients and the optimizer's state are counted from the weights' shapes and exact. Activations,
logits and working memory are sums over listed tensors (`saved_tensors`). The rest is named below with its
assumption. All shards and replicas of a stage need the same, since every split dimension divides.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from qwen3_train.lora.shapes import adapter_shapes
from qwen3_train.parallel.stages import EMBEDDING, HEAD, stage_layers, stage_weights
from qwen3_train.plan.saved_tensors import (
    SavedTensor,
    backward_tensors,
    head_tensors,
    layer_tensors,
    logits_tensors,
    shared_tensors,
)
from qwen3_train.plan.settings import PlanSettings

WEIGHT_BYTES = 4
"""params_dtype float32; gradients and both moments have the same type."""
BUCKET_BYTES = 64 * 2**20
"""Gradients that travel together in one all-reduce, copied into one buffer."""
HCCL_BUFFER_BYTES = 2 * 200 * 2**20
"""Ascend's collectives keep two buffers of HCCL_BUFFSIZE, 200 MiB unless set, for each group of ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """Bytes on each device of a stage."""

    parameters: int
    """Weights in float32, adapters included."""
    gradients: int
    """One float32 gradient for each trained weight."""
    gradient_sums: int
    """The sum over the forward passes of a step, where there are several."""
    gradient_work: int
    """The largest gradient once more while it is summed, scaled and applied; twice for a tied embedding,
    whose gradient is a sum of two."""
    optimizer: int
    """AdamW's two moments, float32, shared among the replicas with enable_parallel_optimizer."""
    updated_rows: int
    """With enable_parallel_optimizer the rows of the weights that a replica updates, once more."""
    weight_copies: int
    """Matrices in the compute type, where that is not float32; one layer's under full recomputation."""
    activations: int
    """What the backward pass needs of a micro-batch, and the inputs of those in flight in a pipeline."""
    working: int
    """What one layer needs on top while its backward pass runs."""
    logits: int
    """Vocabulary-wide tensors of the last stage."""
    communication: int
    """Buffers of the collectives."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def plan_memory(settings: PlanSettings) -> list[StageMemory]:
    """Return the memory of a device of each stage.

    Raises:
        ConfigError: A weight does not divide; `layout_checks` names everything that does not.
    """
    return [_stage_memory(settings, stage) for stage in range(settings.layout.pp)]


def optimizer_elements(shapes: Iterable[tuple[int, ...]], dp: int) -> int:
    """Return how many elements of each moment a replica keeps when `dp` replicas share the state.

    A weight is shared by rows of its shard where they divide, else every replica keeps all of it, as
    MindSpore's own optimizer parallelism does it and as strategy files can say it.
    """
    return sum(math.prod(shape) // (dp if shape[0] % dp == 0 else 1) for shape in shapes)


def updated_elements(shapes: Iterable[tuple[int, ...]], dp: int) -> int:
    """Return how many elements a replica has twice, since it updates them apart and then hands them round."""
    return sum(math.prod(shape) // dp for shape in shapes if shape[0] % dp == 0) if dp > 1 else 0


def micro_batches_in_flight(stage: int, pp: int, micro_batch_num: int) -> int:
    """Return how many micro-batches have passed forward but not yet backward, at most (1F1B).

    Source: Narayanan et al. 2021 (Megatron-LM), section 2.2.
    """
    return min(micro_batch_num, pp - stage)


def _stage_memory(settings: PlanSettings, stage: int) -> StageMemory:
    layout, is_last = settings.layout, stage == settings.layout.pp - 1
    weights = stage_weights(settings.model, layout, settings.offset, stage)
    adapters = {}
    if settings.adapters:
        adapters = adapter_shapes(settings.model, layout, settings.offset, stage, settings.adapters)
    trained = adapters if settings.adapters else weights
    dp = layout.dp if settings.parallel_optimizer else 1
    gradients = WEIGHT_BYTES * _elements(trained)
    activations, working = _activations(settings, stage)
    return StageMemory(
        parameters=WEIGHT_BYTES * (_elements(weights) + _elements(adapters)),
        gradients=gradients,
        gradient_sums=gradients if settings.passes > 1 else 0,
        gradient_work=_gradient_work(trained, is_tied=settings.model.tie_word_embeddings),
        optimizer=2 * WEIGHT_BYTES * optimizer_elements(trained.values(), dp),
        updated_rows=WEIGHT_BYTES * updated_elements(trained.values(), dp),
        weight_copies=_weight_copies(settings, weights),
        activations=activations,
        working=working,
        logits=_bytes(logits_tensors(settings)) if is_last else 0,
        communication=_communication(settings, gradients),
    )


def _activations(settings: PlanSettings, stage: int) -> tuple[int, int]:
    """Bytes kept for the backward pass, and bytes that the layer in its backward pass adds.

    A stage of a pipeline keeps the inputs of its micro-batches in flight and nothing else of them: all but
    the last compute forward again at the beginning of the backward pass, and the last does both at once.
    """
    layout, is_last = settings.layout, stage == settings.layout.pp - 1
    num_layers = len(stage_layers(settings.model.num_layers, layout.pp, settings.offset)[stage])
    every = layer_tensors(settings)
    kept = [tensor for tensor in every if tensor.is_kept(settings.recompute)]
    of_one = num_layers * _bytes(kept) + (_bytes(head_tensors(settings)) if is_last else 0)
    # The first stage's inputs are ids.
    waiting = micro_batches_in_flight(stage, layout.pp, settings.micro_batch_num) if stage else 0
    stream = settings.rows // settings.sequence_split * settings.model.hidden_size * settings.compute_bytes
    repeated = _bytes(every) - _bytes(kept)
    return waiting * stream + of_one + _bytes(shared_tensors(settings)), repeated + _bytes(
        backward_tensors(settings)
    )


def _weight_copies(settings: PlanSettings, weights: Mapping[str, tuple[int, ...]]) -> int:
    """A matrix is cast before each product; the backward pass reads the same copy, or a repeated layer's."""
    if settings.compute_bytes == WEIGHT_BYTES:
        return 0
    # An embedding is cast after the look-up; as a tied head it is cast whole.
    cast = {name: shape for name, shape in weights.items() if len(shape) > 1}
    in_layers = {name: shape for name, shape in cast.items() if name.startswith("model.layers.")}
    elements = _elements(in_layers)
    if settings.recompute == "full" and in_layers:
        elements //= len({name.split(".")[2] for name in in_layers})
    has_head = HEAD in cast or ("model.norm.weight" in weights and settings.model.tie_word_embeddings)
    head = settings.model.vocab_size // settings.layout.tp * settings.model.hidden_size if has_head else 0
    return settings.compute_bytes * (elements + head)


def _gradient_work(trained: Mapping[str, tuple[int, ...]], *, is_tied: bool) -> int:
    name, shape = max(trained.items(), key=lambda weight: math.prod(weight[1]))
    return WEIGHT_BYTES * math.prod(shape) * (2 if is_tied and name == EMBEDDING else 1)


def _communication(settings: PlanSettings, gradients: int) -> int:
    layout = settings.layout
    bucket = min(BUCKET_BYTES, gradients) if layout.dp > 1 else 0
    groups = sum(degree > 1 for degree in (layout.tp, layout.dp, layout.pp)) + (layout.num_ranks > 1)
    return bucket + (HCCL_BUFFER_BYTES * groups if settings.is_fused else 0)


def _elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _bytes(tensors: Iterable[SavedTensor]) -> int:
    return sum(tensor.num_bytes for tensor in tensors)
