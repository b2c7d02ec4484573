"""The memory of a device, part by part, for each pipeline stage.

Parameters, gradients and the optimizer's state are counted from the weights' shapes and exact. Activations,
logits and working memory are sums over listed tensors (`saved_tensors`). All shards and replicas of a stage
need the same, since every split dimension divides.

On Ascend MindSpore gives a tensor's memory back after its last reader, so a device is fullest at one of a few
moments of a step, and the parts that are there at that moment count. A process on a CPU does not shrink: its
parts are added up.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qwen3_train.layout.lora_shapes import adapter_shapes
from qwen3_train.layout.stages import EMBEDDING, HEAD, is_shared_out, piece_shape, stage_layers, stage_weights
from qwen3_train.plan.groups import buffer_bytes, groups_of_stage
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
UPDATE_OUTPUTS = 3
"""Ascend's AdamW returns weight and moments, which MindSpore gives memory of their own."""
LOSS, FIRST_LAYER, EMBEDDING_GRADIENT, UPDATE, WHOLE = (
    "loss", "first layer's gradient", "embedding's gradient", "update", "whole step",
)  # fmt: skip
"""Moments of a step that can be the fullest, in their order; a CPU has the whole step alone."""

PARTS = (
    "parameters", "optimizer", "gradient_sums", "updated_rows", "gradients", "gradient_work", "update_work",
    "weight_copies", "activations", "working", "logits", "communication",
)  # fmt: skip
"""The fields of `StageMemory` that are bytes of max_device_memory, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """Bytes on each device of a stage."""

    parameters: int
    """Weights in float32, adapters included."""
    gradients: int
    """One float32 gradient for each trained weight; of several passes the largest, which its sum takes in."""
    gradient_sums: int
    """The sum over the forward passes of a step, where there are several."""
    gradient_work: int
    """A tied embedding's gradient is a sum of two, which makes three tensors of its size."""
    update_work: int
    """What the update of the largest weight takes: Ascend's operator's outputs, a CPU's scaled gradient."""
    optimizer: int
    """AdamW's two moments, float32, shared among the replicas with enable_parallel_optimizer."""
    updated_rows: int
    """Rows of the weights that a replica updates, once more, with enable_parallel_optimizer."""
    weight_copies: int
    """Matrices in the compute type, where that is not float32 and they are not made again."""
    activations: int
    """What the backward pass needs of a micro-batch, and the inputs of those in flight in a pipeline."""
    working: int
    """What one layer needs on top while its backward pass runs."""
    logits: int
    """Vocabulary-wide tensors of the last stage."""
    communication: int
    """Gradients that travel together, copied into one buffer."""
    moments: Mapping[str, int]
    """What is there at each moment that can be the fullest, of those parts."""
    groups: tuple[str, ...]
    """What each of its communication groups is for."""
    outside: int
    """Buffers of the collectives on Ascend, which lie outside of MindSpore's memory."""

    @property
    def total(self) -> int:
        """What is there at the fullest moment, of max_device_memory."""
        return max(self.moments.values())

    @property
    def fullest(self) -> str:
        """The moment at which that is."""
        return max(self.moments, key=lambda moment: self.moments[moment])


def plan_memory(settings: PlanSettings) -> list[StageMemory]:
    """Return the memory of a device of each stage.

    Raises:
        ConfigError: A weight does not divide; `qwen3_train.layout.checks` names everything that does not.
    """
    return [_stage_memory(settings, stage) for stage in range(settings.layout.pp)]


def optimizer_elements(shapes: Iterable[tuple[int, ...]], dp: int) -> int:
    """Return how many elements of each moment a replica keeps when `dp` replicas share the state.

    A weight is shared by rows of its shard, or by elements where these divide and rows do not.
    """
    return sum(math.prod(piece_shape(shape, dp)) for shape in shapes)


def updated_elements(shapes: Iterable[tuple[int, ...]], dp: int) -> int:
    """Return how many elements a replica has twice, since it updates them apart and then hands them round."""
    return sum(math.prod(shape) // dp for shape in shapes if is_shared_out(shape, dp))


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
    is_tied = settings.model.tie_word_embeddings and EMBEDDING in trained
    sizes = [WEIGHT_BYTES * math.prod(shape) for shape in trained.values()]
    largest_own = max(WEIGHT_BYTES * optimizer_elements([shape], dp) for shape in trained.values())
    every, of_embedding = sum(sizes), WEIGHT_BYTES * math.prod(trained.get(EMBEDDING, (0,)))
    has_passes = settings.passes > 1
    parts = {
        "parameters": WEIGHT_BYTES * (_elements(weights) + _elements(adapters)),
        "optimizer": 2 * WEIGHT_BYTES * optimizer_elements(trained.values(), dp),
        "gradient_sums": every if has_passes else 0,
        "updated_rows": WEIGHT_BYTES * updated_elements(trained.values(), dp),
        "gradients": max(sizes) if has_passes else every,
        "gradient_work": _embedding_work(settings) * of_embedding if is_tied else 0,
        "update_work": _update_work(settings, largest_own, is_tied=is_tied),
        "weight_copies": _weight_copies(settings, weights),
        "activations": _activations(settings, stage),
        "working": _working(settings, weights),
        "logits": _bytes(logits_tensors(settings)) if is_last else 0,
        "communication": min(BUCKET_BYTES, every) if layout.dp > 1 else 0,
    }
    moments = {WHOLE: sum(parts.values())}
    if settings.is_fused:
        lasting = sum(parts[part] for part in ("parameters", "optimizer", "gradient_sums", "updated_rows"))
        shared = _bytes(shared_tensors(settings))
        kept = _bytes(tensor for tensor in layer_tensors(settings) if tensor.is_kept(settings.recompute))
        # The embedding's gradient is the last one; of a tied one the head's part is the first.
        # A sum takes each gradient in as it comes, but for the head's part of a tied embedding's.
        of_layers = [WEIGHT_BYTES * math.prod(shape) for name, shape in trained.items() if name != EMBEDDING]
        before = max(of_layers, default=0) if has_passes else sum(of_layers)
        before += of_embedding if is_tied else 0
        # Inputs of a graph stay until it has ended.
        inputs = _waiting(settings, stage) if _keeps_layer_inputs(settings, stage) else 0
        moments = {
            LOSS: lasting + parts["weight_copies"] + parts["activations"] + parts["logits"],
            FIRST_LAYER: lasting + shared + before + max(kept, inputs) + parts["working"],
            EMBEDDING_GRADIENT: lasting
            + shared
            + inputs
            + parts["gradients"]
            + parts["gradient_work"]
            + parts["communication"],
            UPDATE: lasting + shared + _fullest_update(settings, trained, dp),
        }
    return StageMemory(
        **parts,
        moments=moments,
        groups=groups_of_stage(settings, stage),
        outside=buffer_bytes(settings, stage),
    )


def _embedding_work(settings: PlanSettings) -> int:
    """Copies of a tied embedding's gradient: of lookup and head, or of their sum alone (`TiedLookup`)."""
    is_whole = settings.layout.tp == settings.layout.pp == 1
    return 1 if is_whole and not settings.is_fused else 2


def _update_work(settings: PlanSettings, largest: int, *, is_tied: bool) -> int:
    if settings.is_fused:
        return largest * UPDATE_OUTPUTS
    # On a CPU the scaled gradient alone, for which a tied embedding's gradient has left room.
    return 0 if is_tied else largest


def _fullest_update(settings: PlanSettings, trained: Mapping[str, tuple[int, ...]], dp: int) -> int:
    """What updates take at their fullest, from the smallest weight to the largest: outputs, gradients left.

    Sums over passes stay in any case, so they are not counted, but for what replicas or the ends of a
    pipeline have made of them.
    """
    is_summed = settings.passes > 1
    fullest = left = 0
    for name, shape in sorted(trained.items(), key=lambda each: -optimizer_elements([each[1]], dp)):
        own = WEIGHT_BYTES * optimizer_elements([shape], dp)
        is_tied = settings.model.tie_word_embeddings and name == EMBEDDING and settings.layout.pp > 1
        left += own if not is_summed or is_tied or (dp > 1 and shape[0] % dp == 0) else 0
        fullest = max(fullest, left + UPDATE_OUTPUTS * own)
    return fullest


def _working(settings: PlanSettings, weights: Mapping[str, tuple[int, ...]]) -> int:
    """What one layer takes in its backward pass beside what is kept: gradients, and what is made again."""
    every = layer_tensors(settings)
    again = _bytes(tensor for tensor in every if not tensor.is_kept(settings.recompute))
    return again + _bytes(backward_tensors(settings)) + _layer_copies(settings, weights)


def _activations(settings: PlanSettings, stage: int) -> int:
    """Bytes kept for the backward pass.

    A stage of a pipeline keeps the inputs of its micro-batches in flight and computes forward again at the
    beginning of the backward pass, but for the last stage, which does both at once.
    """
    layout, is_last = settings.layout, stage == settings.layout.pp - 1
    num_layers = len(stage_layers(settings.model.num_layers, layout.pp, settings.offset)[stage])
    kept = _bytes(tensor for tensor in layer_tensors(settings) if tensor.is_kept(settings.recompute))
    if _keeps_layer_inputs(settings, stage):
        kept -= _stream(settings)
    of_one = num_layers * kept + (_bytes(head_tensors(settings)) if is_last else 0)
    return _waiting(settings, stage) + of_one + _bytes(shared_tensors(settings))


def _waiting(settings: PlanSettings, stage: int) -> int:
    """Bytes of what micro-batches in flight keep between graphs: the first layer's input, or each layer's."""
    layout = settings.layout
    in_flight = micro_batches_in_flight(stage, layout.pp, settings.micro_batch_num)
    if _keeps_layer_inputs(settings, stage):
        num_layers = len(stage_layers(settings.model.num_layers, layout.pp, settings.offset)[stage])
        return in_flight * num_layers * _stream(settings)
    return in_flight * _stream(settings) if layout.pp > 1 else 0


def _keeps_layer_inputs(settings: PlanSettings, stage: int) -> bool:
    """Return whether layers that are recomputed whole have their inputs from their stage's forward pass."""
    return settings.is_fused and settings.recompute == "full" and stage < settings.layout.pp - 1


def _stream(settings: PlanSettings) -> int:
    """Bytes of the hidden states of a micro-batch."""
    return settings.rows // settings.sequence_split * settings.model.hidden_size * settings.residual_bytes


def _weight_copies(settings: PlanSettings, weights: Mapping[str, tuple[int, ...]]) -> int:
    """A matrix is cast before each product; the backward pass reads the same copy, or a repeated layer's."""
    if settings.compute_bytes == WEIGHT_BYTES:
        return 0
    layers = {name.split(".")[2] for name in weights if name.startswith("model.layers.")}
    if settings.recompute == "full":
        return 0  # made again for each layer and for the head
    # An embedding is cast after the look-up; as a tied head it is cast whole.
    has_head = HEAD in weights or ("model.norm.weight" in weights and settings.model.tie_word_embeddings)
    head = settings.model.vocab_size // settings.layout.tp * settings.model.hidden_size if has_head else 0
    return len(layers) * _layer_copies(settings, weights) + settings.compute_bytes * head


def _layer_copies(settings: PlanSettings, weights: Mapping[str, tuple[int, ...]]) -> int:
    """The matrices of one layer in the compute type, where that is not float32."""
    if settings.compute_bytes == WEIGHT_BYTES:
        return 0
    first = next((name.split(".")[2] for name in weights if name.startswith("model.layers.")), None)
    own = (shape for name, shape in weights.items() if name.startswith(f"model.layers.{first}."))
    return settings.compute_bytes * sum(math.prod(shape) for shape in own if len(shape) > 1)


def _elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _bytes(tensors: Iterable[SavedTensor]) -> int:
    return sum(tensor.num_bytes for tensor in tensors)
