"""Which tensors the backward pass of a layer needs, one by one with their shapes.

Each entry follows from the derivative of one operation of `qwen3_model` (`layers`, `attention`, `kernels`):

* y = x W^T: dW = dy^T x, so x. The weight is no activation; see `plan.memory` for its copy in another type.
* y = w x r with r = 1 / rms(x) (Zhang and Sennrich 2019): dx and dw need x and r; the fused operator keeps r,
  the plain one computes it again.
* rotation: linear, dx is the rotation back; only the tables, which all layers share.
* softmax(q k^T) v: dq, dk, dv need q, k, v, and the probabilities P (B, N, L, S). FlashAttentionScore
  rebuilds P from two statistics of (B, N, L, 8) in float32, a maximum and a sum per row, and needs its output
  (Dao 2023, section 3.1).
* silu(g) u: du needs silu(g), dg needs g and u; plain arithmetic keeps silu(g), the fused operator reads
  one join of g and u.
* x + y: nothing.

Korthikanti et al. 2022 (section 4) count the same way for a GPT layer; here it is with grouped queries, a
gated feed-forward, no dropout, and what MindSpore's operators keep. Tensor parallelism divides what lies
between a column and a row split. Sequence parallelism divides the rest, but for the gathered inputs of q, k,
v and of gate and up, which are kept. Context parallelism divides all rows, but each chunk of queries keeps
the keys and values up to its end. Adapters (LoRA) add (M, rank) for each target, which is not counted.

M rows of a micro-batch (B * L), D hidden, N query heads, K key/value heads, H head_dim, F feed-forward,
V vocabulary.
"""

import math
from dataclasses import dataclass, replace

from qwen3_train.loss.loss_chunks import rows_of_chunk
from qwen3_train.plan.settings import PlanSettings

FLASH_STATISTIC = 8
"""Columns of each statistic of FlashAttentionScore, float32."""
LOG_SOFTMAX = ("log_probabilities", "log_probabilities.gradient", "logits.gradient")
COMPRESSED_MASK = 2048
"""Rows and columns of its causal mask, uint8."""


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor that lives from the forward to the backward pass of its micro-batch, on one rank."""

    name: str
    shape: tuple[int, ...]
    item_bytes: int
    dropped_by: str
    """The cheapest recomputation that spares it: "selective", "full" or "" for none."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.item_bytes

    def is_kept(self, recompute: str) -> bool:
        """Return whether it survives `recompute`, one of none, selective, full."""
        if recompute == "none" or not self.dropped_by:
            return True
        return recompute == "selective" and self.dropped_by == "full"


def layer_tensors(settings: PlanSettings) -> list[SavedTensor]:
    """Return what one decoder layer keeps of one micro-batch.

    Full recomputation keeps the layer's input, and without sequence parallelism what enters split products.
    Selective recomputation (`recompute`) repeats
    silu(gate) * up, and on a CPU attention from queries, keys and values; a CPU has no other.
    """
    tensors = _attention_tensors(settings) + _mlp_tensors(settings)
    if settings.is_fused:
        if settings.recompute != "full":
            return tensors
        shape = (settings.rows // settings.sequence_split, settings.model.hidden_size)
        if settings.layout.tp > 1 and not settings.layout.sequence_parallel:
            # What a cell with a gradient of its own takes, as the sum before a column split, is kept.
            entering = ("qkv_proj.input", "gate_up_proj.input")
            tensors = [replace(each, dropped_by="") if each.name in entering else each for each in tensors]
        return [SavedTensor("layer.input", shape, settings.residual_bytes, ""), *tensors]
    return [replace(each, dropped_by="") if each.dropped_by == "full" else each for each in tensors]


def head_tensors(settings: PlanSettings) -> list[SavedTensor]:
    """Return what the last norm and the head keep, without the logits."""
    rows, hidden = settings.rows, settings.model.hidden_size
    tensors = [
        *_norm_tensors(settings, "norm", rows // settings.sequence_split, hidden, "full"),
        SavedTensor("lm_head.input", (rows, hidden), settings.compute_bytes, ""),
    ]
    # MindSpore makes float32 inputs of norms again wherever it recomputes layers.
    recompute = settings.recompute if settings.is_fused else "none"
    return [tensor for tensor in tensors if tensor.is_kept(recompute)]


def logits_tensors(settings: PlanSettings) -> list[SavedTensor]:
    """Return the vocabulary-wide tensors that are alive at once when the loss is computed.

    Where the rows are taken in chunks, these are a chunk's, the head in the type of the products, what is
    there of its gradient if it is trained, and the gradient of the hidden states.
    """
    width, hidden, c = (
        settings.model.vocab_size // settings.layout.tp,
        settings.model.hidden_size,
        settings.compute_bytes,
    )
    rows = rows_of_chunk(settings.rows, width)
    # With tensor parallelism the loss takes exp(logits - maximum), otherwise log_softmax(logits).
    is_split = settings.layout.tp > 1 or (settings.is_fused and rows < settings.rows)
    names = ("logits", "logits - maximum", "exponentials") if is_split else LOG_SOFTMAX
    tensors = [SavedTensor(f"loss.{name}", (rows, width), 4, "") for name in names]
    if rows == settings.rows:
        return tensors
    tensors.append(SavedTensor("loss.hidden.gradient", (settings.rows, hidden), c, ""))
    if settings.is_fused and settings.recompute == "full":
        tensors.append(SavedTensor("loss.head", (width, hidden), c, ""))
    if settings.is_fused and not settings.adapters:
        tensors.append(SavedTensor("loss.head.gradient", (width, hidden), 4, ""))
    return tensors


def shared_tensors(settings: PlanSettings) -> list[SavedTensor]:
    """Return what all layers of a stage read: ids, rotary tables and the causal mask.

    The plain kernels repeat the tables for every head. The fused operator's causal mask has one size,
    also where documents are kept apart: it takes their ends.
    """
    model, tp, rows = settings.model, settings.layout.tp, settings.rows
    ids = SavedTensor("ids", (rows,), 4, "")
    if settings.is_fused:
        table = (rows, 1, model.head_dim)
        tables = [SavedTensor(name, table, settings.compute_bytes, "") for name in ("cos", "sin")]
        return [ids, *tables, SavedTensor("mask", (COMPRESSED_MASK, COMPRESSED_MASK), 1, "")]
    tables = [
        SavedTensor(f"{name} of {heads}", (rows * count // tp, model.head_dim), 4, "")
        for heads, count in (("queries", model.num_heads), ("keys", model.num_kv_heads))
        for name in ("cos", "sin")
    ]
    # Where rows differ in what they may see, so do their masks, and each head has its own copy.
    copies = settings.batch_size * model.num_heads // tp if settings.separate_documents else 1
    queries, keys = settings.queries_by_keys
    mask = SavedTensor("mask", (copies * queries, keys), 4, "")
    return [ids, *tables, mask]


def backward_tensors(settings: PlanSettings) -> list[SavedTensor]:
    """Return the gradients that the widest part of a layer holds at once in its backward pass."""
    rows, c, tp = settings.rows, settings.compute_bytes, settings.layout.tp
    wide = (rows, settings.model.intermediate_size // tp)
    mlp = [SavedTensor(f"{name}.gradient", wide, c, "") for name in ("down_proj.input", "gate", "up")]
    if settings.is_fused:
        return max(mlp, _context_gradients(settings), key=_size)
    scores = _heads_by_keys(settings)
    attention = [
        SavedTensor(f"attention.{name}.gradient", scores, 4, "") for name in ("probabilities", "scores")
    ]
    return max(mlp, attention, key=_size)


def _context_gradients(settings: PlanSettings) -> list[SavedTensor]:
    """Return gradients of the keys and values of the chunks looked at, and of their sequence."""
    if settings.layout.cp == 1:
        return []
    model, b, c = settings.model, settings.batch_size, settings.compute_bytes
    width = 2 * model.num_kv_heads // settings.layout.tp * model.head_dim
    keys = {"of chunks": settings.queries_by_keys[1], "gathered": settings.seq_length}
    return [
        SavedTensor(f"attention.keys and values {name}.gradient", (b, length, width), c, "")
        for name, length in keys.items()
    ]


def _size(tensors: list[SavedTensor]) -> int:
    return sum(tensor.num_bytes for tensor in tensors)


def _attention_tensors(settings: PlanSettings) -> list[SavedTensor]:
    model, tp, c = settings.model, settings.layout.tp, settings.compute_bytes
    b, rows, h = settings.batch_size, settings.rows, model.head_dim
    length = settings.seq_length // settings.layout.cp
    # With context parallelism each of two chunks has the keys up to its end.
    keys = settings.queries_by_keys[1]
    n, k = model.num_heads // tp, model.num_kv_heads // tp
    tensors = [
        *_norm_tensors(
            settings, "input_layernorm", rows // settings.sequence_split, model.hidden_size, "full"
        ),
        SavedTensor("qkv_proj.input", (rows, model.hidden_size), c, "full"),
        *_norm_tensors(settings, "q_norm", rows * n, h, "full"),
        *_norm_tensors(settings, "k_norm", rows * k, h, "full"),
        SavedTensor("attention.query", (b, n, length, h), c, "full"),
        SavedTensor("attention.key", (b, k, keys, h), c, "full"),
        SavedTensor("attention.value", (b, k, keys, h), c, "full"),
    ]
    if settings.is_fused:
        statistic = (b, n, length, FLASH_STATISTIC)
        tensors += [
            SavedTensor("attention.softmax_max", statistic, 4, "full"),
            SavedTensor("attention.softmax_sum", statistic, 4, "full"),
            # It is o_proj's input as it is.
            SavedTensor("attention.output", (b, length, n * h), c, "full"),
        ]
    else:
        tensors += [
            SavedTensor("attention.probabilities", _heads_by_keys(settings), 4, "selective"),
            SavedTensor("o_proj.input", (rows, n * h), c, "full"),
        ]
    return tensors


def _mlp_tensors(settings: PlanSettings) -> list[SavedTensor]:
    rows, hidden, c = settings.rows, settings.model.hidden_size, settings.compute_bytes
    wide = settings.model.intermediate_size // settings.layout.tp
    tensors = [
        *_norm_tensors(settings, "post_attention_layernorm", rows // settings.sequence_split, hidden, "full"),
        SavedTensor("gate_up_proj.input", (rows, hidden), c, "full"),
    ]
    if settings.is_fused:
        tensors.append(SavedTensor("swiglu.input", (rows, 2 * wide), c, "full"))
    else:
        tensors += [
            SavedTensor("swiglu.gate", (rows, wide), c, "full"),
            SavedTensor("swiglu.up", (rows, wide), c, "full"),
            SavedTensor("swiglu.silu", (rows, wide), c, "selective"),
        ]
    return [*tensors, SavedTensor("down_proj.input", (rows, wide), c, "selective")]


def _norm_tensors(
    settings: PlanSettings,
    name: str,
    rows: int,
    width: int,
    input_dropped_by: str,
    rest_dropped_by: str = "full",
) -> list[SavedTensor]:
    # The fused operator is given float32.
    tensors = [SavedTensor(f"{name}.input", (rows, width), 4, input_dropped_by)]
    if settings.is_fused:
        tensors.append(SavedTensor(f"{name}.inverse_rms", (rows, 1), 4, rest_dropped_by))
    return tensors


def _heads_by_keys(settings: PlanSettings) -> tuple[int, ...]:
    heads = settings.model.num_heads // settings.layout.tp
    return (settings.batch_size, heads, *settings.queries_by_keys)
