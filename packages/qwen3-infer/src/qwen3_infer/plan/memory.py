"""The memory of an Ascend device that generates, part by part.

Weights and cache are counted from shapes and exact. What a step takes beside them is a sum over the tensors
that are there at its fullest moment. L tokens of a piece of a prompt, S tokens that it may see, R rows of a
step of decoding, D hidden, N query heads, K key/value heads, H head_dim, F feed-forward, V vocabulary; heads,
F and V are those of one device.
"""

import math
from dataclasses import dataclass

from qwen3_infer.plan.settings import BLOCK_TOKENS, PlanSettings
from qwen3_infer.steps.pieces import DEVICE_PIECES
from qwen3_model.device.memory import GROUP_BYTES
from qwen3_model.ranks.layout import shard_slices

HALF, FULL = 2, 4
"""Bytes of bfloat16, which weights, cache and activations have, and of float32."""
FLASH_STATISTIC = 8
"""Columns of each of the two statistics of FlashAttentionScore, float32."""
PARTS = ("weights", "cache", "work")
"""The fields of `PredictMemory` that are bytes of max_device_memory, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictMemory:
    """Bytes on each device."""

    weights: int
    """The rank's weights, in bfloat16."""
    cache: int
    """Keys and values in bfloat16, in whole blocks."""
    prompt: int
    """What the longest piece of a prompt takes while it is read."""
    decoding: int
    """What a step takes that adds a token to each request."""
    outside: int
    """Buffers of the collectives, which lie outside of MindSpore's memory; all ranks are one group."""

    @property
    def work(self) -> int:
        """What the fullest of the two kinds of step takes."""
        return max(self.prompt, self.decoding)

    @property
    def total(self) -> int:
        """What there is at the fullest moment, of max_device_memory."""
        return self.weights + self.cache + self.work


def plan_memory(settings: PlanSettings) -> PredictMemory:
    """Return the memory of a device; all of them need the same."""
    return PredictMemory(
        weights=HALF * num_weights(settings),
        cache=settings.num_blocks * BLOCK_TOKENS * token_bytes(settings),
        prompt=_prompt(settings),
        decoding=_decoding(settings),
        outside=GROUP_BYTES if settings.tp > 1 else 0,
    )


def num_weights(settings: PlanSettings) -> int:
    """Return how many weights a device holds."""
    return sum(
        math.prod(part.stop - part.start for part in shard_slices(name, shape, tp=settings.tp, shard=0))
        for name, shape in settings.model.weight_shapes().items()
    )


def token_bytes(settings: PlanSettings) -> int:
    """Return what a token takes of a device's cache."""
    model = settings.model
    return 2 * model.num_layers * model.num_kv_heads // settings.tp * model.head_dim * HALF


def largest_cache(settings: PlanSettings) -> int | None:
    """Return the tokens of the largest cache that fits; None without a limit."""
    if settings.memory_bytes is None:
        return None
    memory = plan_memory(settings)
    left = settings.memory_bytes - memory.weights - memory.work
    return max(0, left // (BLOCK_TOKENS * token_bytes(settings)) - 1) * BLOCK_TOKENS


def _prompt(settings: PlanSettings) -> int:
    model, tp, length = settings.model, settings.tp, DEVICE_PIECES[0]
    seen = settings.request_blocks * BLOCK_TOKENS
    length = min(length, seen)
    queries, keys = model.num_heads // tp * model.head_dim, model.num_kv_heads // tp * model.head_dim
    wide = model.intermediate_size // tp
    stream = length * model.hidden_size * settings.residual_bytes
    mask = length * seen
    attention = (
        length * (queries + 2 * keys) * HALF  # queries, new keys and values
        + 2 * seen * keys * HALF  # keys and values of the blocks, side by side
        + length * queries * HALF  # its output
        + 2 * length * model.num_heads // tp * FLASH_STATISTIC * FULL
    )
    feed_forward = length * (model.hidden_size + 2 * wide + 2 * wide) * HALF  # input, gate and up, their join
    return stream + mask + max(attention, feed_forward)


def _decoding(settings: PlanSettings) -> int:
    """Logits are there in bfloat16 and float32, and joined where they are shared out; the last ones, too."""
    rows, vocabulary = settings.num_rows, settings.model.vocab_size
    share = rows * vocabulary // settings.tp
    joined = (1 + (rows > 1)) * rows * vocabulary * FULL if settings.tp > 1 else 0
    return share * (HALF + FULL) + joined + rows * vocabulary * FULL
