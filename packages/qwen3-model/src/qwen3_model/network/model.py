"""The Qwen3 dense model: one definition for training, prefill and decoding, with Hugging Face's weight names.

Activations travel as M = B * L rows, since a CPU multiplies matrices fastest in two dimensions.
B batch, L length, D hidden, V vocabulary, H head_dim.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops

from qwen3_model.config import Qwen3Config
from qwen3_model.network.attention import Attention
from qwen3_model.network.cache import KVCache, LayerCache, Rows
from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.kernels.seam import Kernels, Plan, Segments
from qwen3_model.network.layers import MLP, Embedding, Linear, RMSNorm
from qwen3_model.network.rope import rope_frequencies
from qwen3_model.ranks.layout import Part
from qwen3_model.ranks.shards import Tp, Whole


class DecoderLayer(nn.Cell):
    """Attention and feed-forward, each added to the stream that it reads through a norm."""

    def __init__(self, config: Qwen3Config, kernels: Kernels, dtype: ms.Type, tp: Tp) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, kernels, dtype)
        self.self_attn = Attention(config, kernels, dtype, tp)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, kernels, dtype)
        self.mlp = MLP(config, kernels, dtype, tp)

    def construct(self, x_MD: Tensor, plan: Plan, cache: LayerCache | None = None) -> Tensor:
        x_MD = x_MD + self.self_attn(self.input_layernorm(x_MD), plan, cache).astype(x_MD.dtype)
        return x_MD + self.mlp(self.post_attention_layernorm(x_MD)).astype(x_MD.dtype)


class NumberedLayers(nn.CellList):
    """The layers of a pipeline stage, under their numbers in the whole model."""

    def __init__(self, layers: list[nn.Cell], first: int) -> None:
        super().__init__(layers)
        self._cells = {str(first + i): layer for i, layer in enumerate(layers)}

    def __getitem__(self, index: int) -> nn.Cell:
        """Return the stage's layer number `index`, counted from 0."""
        return list(self._cells.values())[index]


class Qwen3Model(nn.Cell):
    """From ids to the last hidden states, or the part of that way that a pipeline stage has."""

    def __init__(
        self, config: Qwen3Config, kernels: Kernels, param_dtype: ms.Type, tp: Tp, part: Part
    ) -> None:
        super().__init__()
        self.kernels, self.compute_dtype = kernels, kernels.compute_dtype
        self.num_heads, self.num_kv_heads = config.num_heads // tp.size, config.num_kv_heads // tp.size
        self.is_last = part.is_last
        if part.is_first or (part.is_last and config.tie_word_embeddings):
            self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, kernels, param_dtype, tp)
        layers = [DecoderLayer(config, kernels, param_dtype, tp) for _ in part.layers]
        self.layers = NumberedLayers(layers, part.layers.start) if part.layers.start else nn.CellList(layers)
        if part.is_last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, kernels, param_dtype)
        frequencies_H, self.rope_scale = rope_frequencies(config)
        self.frequencies_H = Tensor(frequencies_H)

    def construct(
        self,
        ids_BL: Tensor,
        position_ids_BL: Tensor | None = None,
        segment_ids_BL: Segments | None = None,
        cache: KVCache | None = None,
        rows_B: Rows = None,
        x_MD: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states after the last norm, (B * L, D); see `Qwen3ForCausalLM`.

        A pipeline stage takes those of the stage before it as `x_MD`, and returns them before the norm unless
        it is the last. With sequence parallelism each rank has its share of the rows.
        """
        if position_ids_BL is None:
            position_ids_BL = positions_of(ids_BL)
        plan = self.plan(position_ids_BL, segment_ids_BL, cache, rows_B)
        if x_MD is None:
            x_MD = self.embed(ids_BL)
        if cache is None:
            for layer in self.layers:
                x_MD = layer(x_MD, plan)
        else:
            slots = cache.slots(position_ids_BL, rows_B)
            for i, layer in enumerate(self.layers):
                x_MD = layer(x_MD, plan, (cache.keys[i], cache.values[i], cache.num_rows, slots))
        return self.norm(x_MD) if self.is_last else x_MD

    def plan(
        self,
        position_ids_BL: Tensor,
        segment_ids_BL: Segments | None = None,
        cache: KVCache | None = None,
        rows_B: Rows = None,
    ) -> Plan:
        """Return what every layer is called with, the kernels' plan for these positions."""
        angles_BLH = position_ids_BL.astype(ms.float32).expand_dims(-1) * self.frequencies_H
        cos_BLH, sin_BLH = mint.cos(angles_BLH) * self.rope_scale, mint.sin(angles_BLH) * self.rope_scale
        visible_BLS = self._visible(position_ids_BL, segment_ids_BL, cache, rows_B)
        return self.kernels.plan(cos_BLH, sin_BLH, visible_BLS, self.num_heads, self.num_kv_heads)

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Return what the first layer takes, (M, D)."""
        return self.embed_tokens(ids_BL.reshape(-1)).astype(self.kernels.residual_dtype)

    def _visible(
        self,
        position_ids_BL: Tensor,
        segment_ids_BL: Segments | None,
        cache: KVCache | None,
        rows_B: Rows,
    ) -> Segments | None:
        """Return which keys each query sees, (B, L, S); None is the causal order."""
        if cache is not None:
            return cache.visible(position_ids_BL, rows_B)
        if segment_ids_BL is None or isinstance(segment_ids_BL, tuple):
            return segment_ids_BL
        offsets_L = Tensor(np.arange(segment_ids_BL.shape[1], dtype=np.int32))
        past_LS = offsets_L.expand_dims(0) <= offsets_L.expand_dims(1)
        return mint.logical_and(segment_ids_BL.expand_dims(1) == segment_ids_BL.expand_dims(2), past_LS)


def positions_of(ids_BL: Tensor) -> Tensor:
    """Return 0, 1, 2, ... for each row, int32 of the shape of the ids."""
    return ops.tile(Tensor(np.arange(ids_BL.shape[1], dtype=np.int32)).expand_dims(0), (ids_BL.shape[0], 1))


class Qwen3ForCausalLM(nn.Cell):
    """The model with its head. Weights are zeros until `loading` fills them, which is before the first call.

    Args of the call:
        ids_BL: int32.
        position_ids_BL: int32; 0, 1, 2, ... in each row when left out. They turn the queries and keys and
            nothing else, unless there is a cache.
        segment_ids_BL: int32; a token sees the earlier tokens of its own segment only. One segment per
            document keeps packed documents apart, and a segment of their own hides padding on either side.
            Or what `kernels.segments` makes of them.
        cache: Takes the keys and values. Then `position_ids_BL` must be given, below the cache's
            capacity, and alone says what a query sees: slots 0 to its position.
        last_B: int32; the index in each row whose logits are wanted.
        rows_B: Which rows of the cache these rows continue, in the form that the cache asks for; for a
            `KVCache` their numbers, int32, or all of them in their order when left out.

    Returns:
        float32 logits (B, L, V), or (B, V) with `last_B`; with tensor parallelism this rank's share of V.
    """

    def __init__(
        self,
        config: Qwen3Config,
        kernels: Kernels | None = None,
        *,
        param_dtype: ms.Type = ms.float32,
        tp: Tp | None = None,
        part: Part | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.kernels = PortableKernels() if kernels is None else kernels
        self.tp = Whole() if tp is None else tp
        self.part = Part(layers=range(config.num_layers)) if part is None else part
        self.model = Qwen3Model(config, self.kernels, param_dtype, self.tp, self.part)
        self.is_tied = config.tie_word_embeddings
        if self.part.is_last and not self.is_tied:
            num_rows = config.vocab_size // self.tp.size
            self.lm_head = Linear(config.hidden_size, num_rows, self.kernels, param_dtype)
        name_parameters(self)

    def construct(
        self,
        ids_BL: Tensor,
        position_ids_BL: Tensor | None = None,
        segment_ids_BL: Segments | None = None,
        cache: KVCache | None = None,
        last_B: Tensor | None = None,
        rows_B: Rows = None,
    ) -> Tensor:
        b, length = ids_BL.shape
        hidden_MD = self.model(ids_BL, position_ids_BL, segment_ids_BL, cache, rows_B)
        if last_B is None:
            return self.head(hidden_MD).reshape(b, length, -1)
        last_B = Tensor(np.arange(b, dtype=np.int32)) * length + last_B
        return self.head(self.kernels.pick(hidden_MD, last_B))

    def head(self, hidden_MD: Tensor) -> Tensor:
        """Return float32 logits (M, V) of hidden states (M, D); of a split table V is this rank's share."""
        return self.project(hidden_MD).astype(ms.float32)

    def project(self, hidden_MD: Tensor) -> Tensor:
        """Return the same in the type that the model computes in."""
        hidden_MD = self.tp.enter(hidden_MD)
        if self.is_tied:
            return self.model.embed_tokens.project(hidden_MD)
        return self.lm_head(hidden_MD)

    def head_products(self, hidden_MD: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the products whose sum `project` returns: what they multiply, and weights of V rows."""
        hidden_MD = self.tp.enter(hidden_MD)
        if self.is_tied:
            return self.model.embed_tokens.products(hidden_MD)
        return self.lm_head.products(hidden_MD)

    def head_weights(self) -> tuple[Parameter, ...]:
        """Return the weights of these products, in their order; a stage without a head has none."""
        if not self.part.is_last:
            return ()
        head = self.model.embed_tokens if self.is_tied else self.lm_head
        return head.product_weights()


class CachedQwen3(nn.Cell):
    """A model together with its cache: compile `construct` once per shape of `ids_BL`, (rows, 1) to decode.

    Example:
        step = ms.jit(CachedQwen3(model, KVCache(config, num_rows, capacity)).construct)
        logits_BV = step(prompt_ids_BL, arange_BL, lengths_B - 1)   # prefill, filled up on the right
        logits_BV = step(next_ids_B1, lengths_B1, zeros_B)          # decode, each row at its own position
    """

    def __init__(self, network: Qwen3ForCausalLM, cache: KVCache) -> None:
        super().__init__()
        self.network, self.cache = network, cache
        name_parameters(network)

    def construct(
        self, ids_BL: Tensor, position_ids_BL: Tensor, last_B: Tensor, rows_B: Rows = None
    ) -> Tensor:
        return self.network(ids_BL, position_ids_BL, None, self.cache, last_B, rows_B)


def name_parameters(cell: nn.Cell) -> None:
    """Give each weight its path in `cell` as its name.

    Needed again whenever a child has been replaced, or `cell` has become a child, which prefixes the names.
    """
    for path, parameter in cell.parameters_and_names():
        parameter.name = path
