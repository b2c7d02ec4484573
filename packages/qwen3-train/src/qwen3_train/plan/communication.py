"""What each device sends in a step: how often, how much and for which kind of parallelism.

Bytes sent follow the ring algorithms (Patarasuk and Yuan 2009): an all-reduce of S bytes among n ranks sends
2 S (n - 1) / n from each, a gather or a scatter half of that.
"""

import math
from dataclasses import dataclass

from qwen3_model.ranks.layout import placement
from qwen3_train.layout.lora_shapes import adapter_shapes
from qwen3_train.layout.stages import EMBEDDING, is_shared_out, stage_layers, stage_weights
from qwen3_train.plan.memory import WEIGHT_BYTES
from qwen3_train.plan.settings import PlanSettings


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of message of a device in one step."""

    kind: str
    """tp, cp, dp, pp or tied."""
    operation: str
    purpose: str
    calls: int
    """How often in a step."""
    payload_bytes: int
    """Size of the tensor that one call is about."""
    sent_bytes: int
    """What the device sends in the whole step."""


def plan_traffic(settings: PlanSettings, stage: int) -> list[Traffic]:
    """Return what a device of `stage` sends in one step, without the kinds that do not occur."""
    found = (
        _tensor_traffic(settings, stage)
        + _context_traffic(settings, stage)
        + _data_traffic(settings, stage)
        + _pipeline_traffic(settings, stage)
    )
    return [traffic for traffic in found if traffic.calls]


def _tensor_traffic(settings: PlanSettings, stage: int) -> list[Traffic]:
    """Forward: one sum after attention and one after the feed-forward; backward: one before each.

    With sequence parallelism each sum is a scatter after and a gather before, of the same total. Full
    recomputation repeats the forward ones, and so do all stages but the last.
    """
    layout, model, tp = settings.layout, settings.model, settings.layout.tp
    if tp == 1:
        return []
    num_layers = len(stage_layers(model.num_layers, layout.pp, settings.offset)[stage])
    is_first, is_last = stage == 0, stage == layout.pp - 1
    again = (settings.recompute == "full") + (not is_last)
    sums = num_layers * (4 + 2 * again) + is_first * (2 - is_last) + is_last
    operation = "reduce-scatter + all-gather" if layout.sequence_parallel else "all-reduce"
    stream = settings.rows * model.hidden_size * settings.compute_bytes
    per_token = settings.rows * 4
    norms = (
        num_layers
        * (2 * model.head_dim + (2 * model.hidden_size if layout.sequence_parallel else 0))
        * WEIGHT_BYTES
    )
    return [
        _ring("tp", operation, "activations", settings.passes * sums, stream, tp),
        _ring(
            "tp",
            "all-reduce",
            "cross entropy: maximum, sum, target",
            3 * settings.passes * is_last,
            per_token,
            tp,
        ),
        _partial_gradients(settings, stage, norms),
    ]


def _context_traffic(settings: PlanSettings, stage: int) -> list[Traffic]:
    """Keys and values of the whole sequence are gathered, and their gradients handed out again."""
    layout, model, cp = settings.layout, settings.model, settings.layout.cp
    if cp == 1:
        return []
    num_layers = len(stage_layers(model.num_layers, layout.pp, settings.offset)[stage])
    again = (settings.recompute == "full") + (stage < layout.pp - 1)
    width = 2 * model.num_kv_heads // layout.tp * model.head_dim
    payload = settings.batch_size * settings.seq_length * width * settings.compute_bytes
    calls = settings.passes * num_layers
    sent = payload * (cp - 1) // cp
    forward = calls * (1 + again)
    return [
        Traffic("cp", "all-gather", "keys and values", forward, payload, forward * sent),
        Traffic("cp", "reduce-scatter", "gradients of keys and values", calls, payload, calls * sent),
    ]


def _partial_gradients(settings: PlanSettings, stage: int, norm_bytes: int) -> Traffic:
    """Return the traffic of gradients of weights that shards have whole and use in part."""
    if not settings.adapters:
        return _ring("tp", "all-reduce", "gradients of norms", 1, norm_bytes, settings.layout.tp)
    whole = [
        math.prod(shape)
        for name, shape in trained_shapes(settings, stage).items()
        if "tp" not in placement(name)
    ]
    payload = WEIGHT_BYTES * sum(whole)
    return _ring("tp", "all-reduce", "gradients of uncut adapter halves", 1, payload, settings.layout.tp)


def _data_traffic(settings: PlanSettings, stage: int) -> list[Traffic]:
    dp = settings.layout.dp
    if dp == 1:
        return []
    sizes = [
        (is_shared_out(shape, dp), WEIGHT_BYTES * math.prod(shape))
        for shape in trained_shapes(settings, stage).values()
    ]
    every = sum(size for _, size in sizes)
    if not settings.parallel_optimizer:
        return [_ring("dp", "all-reduce", "gradients", 1, every, dp)]
    shared = sum(size for is_shared, size in sizes if is_shared)
    sent = shared * (dp - 1) // dp
    return [
        Traffic("dp", "reduce-scatter", "gradients", int(bool(shared)), shared, sent),
        _ring("dp", "all-reduce", "gradients that do not divide", int(every > shared), every - shared, dp),
        Traffic("dp", "all-gather", "updated weights", int(bool(shared)), shared, sent),
    ]


def _pipeline_traffic(settings: PlanSettings, stage: int) -> list[Traffic]:
    layout, model = settings.layout, settings.model
    if layout.pp == 1:
        return []
    message = settings.rows // settings.sequence_split * model.hidden_size * settings.residual_bytes
    forward = settings.passes * (stage < layout.pp - 1)
    backward = settings.passes * (stage > 0)
    traffic = [
        Traffic("pp", "send", "activations to the next stage", forward, message, forward * message),
        Traffic("pp", "send", "gradients to the stage before", backward, message, backward * message),
    ]
    if model.tie_word_embeddings and stage in (0, layout.pp - 1):
        module = EMBEDDING.removesuffix("weight")
        table = [shape for name, shape in trained_shapes(settings, stage).items() if name.startswith(module)]
        payload = WEIGHT_BYTES * sum(math.prod(shape) for shape in table)
        traffic.append(
            _ring("tied", "all-reduce", "gradient of the tied embedding", int(bool(table)), payload, 2)
        )
    return traffic


def trained_shapes(settings: PlanSettings, stage: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a shard of a stage trains, by name."""
    if settings.adapters:
        return adapter_shapes(settings.model, settings.layout, settings.offset, stage, settings.adapters)
    return stage_weights(settings.model, settings.layout, settings.offset, stage)


def _ring(kind: str, operation: str, purpose: str, calls: int, payload_bytes: int, num_ranks: int) -> Traffic:
    sent = calls * payload_bytes * 2 * (num_ranks - 1) // num_ranks
    return Traffic(kind, operation, purpose, calls, payload_bytes, sent)
