"""The Ascend graphs of the model, compiled by MindSpore's front end on a CPU: shapes and types, not numbers.

Each size has one layer of its own shapes, and its whole vocabulary, under every degree of tensor parallelism.
"""

import dataclasses

import ascend_contracts
import mindspore as ms
import pytest
from ascend_graphs import compile_graph, fake_groups, halves, ints
from mindspore import nn, ops

from qwen3_model.config import SIZES
from qwen3_model.errors import ConfigError
from qwen3_model.network.cache import BLOCK_TOKENS
from qwen3_model.network.kernels.ascend import AscendKernels
from qwen3_model.network.kernels.choice import make_kernels
from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.model import CachedQwen3, Qwen3ForCausalLM
from qwen3_model.ranks.collectives import make_group
from qwen3_model.ranks.shards import Shards, Whole

FUSED = (b"RmsNorm", b"RotaryPositionEmbedding", b"Swiglu")
ROWS, LENGTH, CAPACITY = 2, 32, 512
TINY = dataclasses.replace(
    SIZES["0.6B"], hidden_size=128, intermediate_size=256, num_heads=8, head_dim=16, vocab_size=512
)
CONFIGS = {"tiny": TINY} | SIZES


@pytest.fixture(autouse=True)
def checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a refused graph is written to the working directory
    ascend_contracts.install(monkeypatch)
    fake_groups(monkeypatch)


def one_layer(size):
    return dataclasses.replace(CONFIGS[size], num_layers=1, max_position_embeddings=CAPACITY)


def rank_of(size, tp, *, sequence_parallel=False):
    """One rank's model and cache."""
    config, kernels = one_layer(size), make_kernels("Ascend")
    group = make_group("Ascend", f"tp_0_{tp}", list(range(tp)), tp - 1)
    shards = Whole() if tp == 1 else Shards(group, sequence_parallel=sequence_parallel)
    own = dataclasses.replace(
        config, num_heads=config.num_heads // tp, num_kv_heads=config.num_kv_heads // tp
    )
    model = Qwen3ForCausalLM(config, kernels, param_dtype=ms.bfloat16, tp=shards)
    return model, CachedQwen3(model, kernels.make_cache(own, ROWS, CAPACITY))


def documents_kept_apart(size, tp):
    model, _ = rank_of(size, tp)
    return compile_graph(model, *[ints(ROWS, LENGTH)] * 3)


def causal_order(size, tp):
    model, _ = rank_of(size, tp, sequence_parallel=True)
    return compile_graph(model, ints(ROWS, LENGTH))


def piece_of_a_prompt(size, tp):
    _, cached = rank_of(size, tp)
    place = ints(2, 2), ints(CAPACITY // BLOCK_TOKENS)
    return compile_graph(cached, ints(1, 2 * BLOCK_TOKENS), ints(1, 2 * BLOCK_TOKENS), ints(1), place)


def decoding(size, tp):
    _, cached = rank_of(size, tp)
    place = ints(ROWS, 2), ints(ROWS, CAPACITY // BLOCK_TOKENS), ms.mutable((3, 5))
    return compile_graph(cached, ints(ROWS, 1), ints(ROWS, 1), ints(ROWS), place)


GRAPHS = {
    documents_kept_apart: {b"FlashAttentionScore"},
    piece_of_a_prompt: {b"FlashAttentionScore", b"KVCacheScatterUpdate"},
    decoding: {b"IncreFlashAttention", b"KVCacheScatterUpdate"},
}


# Every size alone and with the fewest heads that a rank has of it; between them, one size's.
@pytest.mark.parametrize(
    ("size", "tp"), [*((size, tp) for size in CONFIGS for tp in (1, 8)), ("4B", 2), ("4B", 4)]
)
def test_a_rank_of_every_size_compiles_forward_prefill_and_decoding(size, tp):
    for build, wanted in GRAPHS.items():
        if build is documents_kept_apart and (size, tp) not in (("tiny", 1), ("32B", 1)):
            continue  # the mask and the heads of a rank are those of a prompt's piece
        graph = build(size, tp)
        assert all(name in graph for name in (*FUSED, *wanted)), build.__name__
        assert (b"IncreFlashAttention" in graph) == (build is decoding)
        assert (b"AllReduce" in graph) == (tp > 1)


def test_the_causal_order_and_the_exchanges_of_sequence_parallelism():
    graph = causal_order("0.6B", 2)
    names = (*FUSED, b"FlashAttentionScore", b"AllGather", b"ReduceScatter")
    assert all(name in graph for name in names)


def test_gradients_compile():
    class Gradients(nn.Cell):
        def __init__(self):
            super().__init__()
            self.network, _ = rank_of("0.6B", 1)
            self.gradient = ops.GradOperation(get_by_list=True)
            self.weights = ms.ParameterTuple(self.network.trainable_params())

        def construct(self, ids_BL):
            return self.gradient(self.network, self.weights)(ids_BL)

    graph = compile_graph(Gradients(), ints(1, LENGTH))
    wanted = (
        b"FlashAttentionScoreGrad",
        b"RmsNormGrad",
        b"SwigluGrad",
        b"RotaryPositionEmbeddingGrad",
    )
    assert all(name in graph for name in wanted)


# Each of MindSpore's operators, called wrongly. `argument` says what of a call to put in another's place.
CHECKED = {name: checked for name, (_, checked) in ascend_contracts.OPERATORS.items()}
NORM, SWIGLU, TURN = CHECKED["rms_norm"], CHECKED["swiglu"], CHECKED["rotary_position_embedding"]
ATTEND, DECODE = CHECKED["flash_attention_score"], CHECKED["incre_flash_attention"]
STORE = CHECKED["kv_cache_scatter_update"]


def norm_swapped(x, gamma, eps):
    return NORM(gamma, x, eps)


def norm_of_other_type(x, gamma, eps):
    return NORM(x, gamma.astype(ms.float16), eps)


def norm_too_short(x, gamma, eps):
    return NORM(x, gamma[:-1], eps)


def swiglu_odd(x, dim):
    return SWIGLU(x[:, :-1], dim)


def swiglu_of_integers(x, dim):
    return SWIGLU(x.astype(ms.int32), dim)


def turn_heads_first(x, cos, sin, mode):
    return TURN(x.transpose(0, 2, 1, 3), cos, sin, mode)


def turn_by_other_type(x, cos, sin, mode):
    return TURN(x, cos.astype(ms.bfloat16), sin, mode)


def turn_by_half_a_table(x, cos, sin, mode):
    return TURN(x, cos[..., :8], sin, mode)


def turn_in_other_mode(x, cos, sin, mode):
    return TURN(x, cos, sin, 1)


def attend_swapped(q, k, v, n, **named):
    return ATTEND(k, q, v, n, **named)


def attend_with_other_heads(q, k, v, n, **named):
    return ATTEND(q, k, v, n // 3, **named)


def attend_with_mask_of_floats(q, k, v, n, *, attn_mask, scalar_value, input_layout, sparse_mode):
    mask = attn_mask.astype(ms.float32)
    return ATTEND(
        q, k, v, n, attn_mask=mask, scalar_value=scalar_value,
        input_layout=input_layout, sparse_mode=sparse_mode,
    )  # fmt: skip


def attend_in_other_mode(q, k, v, n, *, attn_mask, scalar_value, input_layout, sparse_mode):
    return ATTEND(
        q, k, v, n, attn_mask=attn_mask, scalar_value=scalar_value,
        input_layout=input_layout, sparse_mode=2 - sparse_mode,
    )  # fmt: skip


def attend_with_short_keys(q, k, v, n, **named):
    return ATTEND(q, k[:, :, :-16], v, n, **named)


def attend_in_float32(q, k, v, n, **named):
    return ATTEND(q.astype(ms.float32), k, v, n, **named)


def decode_without_lists(q, k, v, **named):
    return DECODE(q, k[0], v[0], **named)


def decode_swapped(q, k, v, **named):
    return DECODE(k[0], [q], v, **named)


def decode_in_float32(q, k, v, **named):
    return DECODE(q.astype(ms.float32), k, v, **named)


def store_swapped(cache, places, new, axis):
    return STORE(new, places, cache, axis)


def store_in_other_order(cache, places, new, axis):
    return STORE(cache, new, places, axis)


def store_of_other_type(cache, places, new, axis):
    return STORE(cache, places, new.astype(ms.float32), axis)


def store_with_a_place_missing(cache, places, new, axis):
    return STORE(cache, places[:-1], new, axis)


def store_with_flat_places(cache, places, new, axis):
    return STORE(cache, places[:, 0], new, axis)


def store_along_other_axis(cache, places, new, axis):
    return STORE(cache, places, new, 2)


MISTAKES = {
    "rms_norm": [norm_swapped, norm_of_other_type, norm_too_short],
    "swiglu": [swiglu_odd, swiglu_of_integers],
    "rotary_position_embedding": [
        turn_heads_first,
        turn_by_other_type,
        turn_by_half_a_table,
        turn_in_other_mode,
    ],
    "flash_attention_score": [
        attend_swapped,
        attend_with_other_heads,
        attend_with_mask_of_floats,
        attend_in_other_mode,
        attend_with_short_keys,
        attend_in_float32,
    ],
    "incre_flash_attention": [decode_without_lists, decode_swapped, decode_in_float32],
    "kv_cache_scatter_update": [
        store_swapped,
        store_in_other_order,
        store_of_other_type,
        store_with_a_place_missing,
        store_with_flat_places,
        store_along_other_axis,
    ],
}
# Of these MindSpore's own front end sees none but the first; the contract in front of it sees all.


def norm(size, tp):
    model, _ = rank_of(size, tp)
    return compile_graph(model.model.norm, halves(LENGTH, model.config.hidden_size))


def feed_forward(size, tp):
    model, _ = rank_of(size, tp)
    return compile_graph(model.model.layers[0].mlp, halves(LENGTH, model.config.hidden_size))


def attention(size, tp):
    class WithPlan(nn.Cell):
        def __init__(self, model):
            super().__init__()
            self.model, self.attention = model, model.layers[0].self_attn

        def construct(self, x_MD, position_ids_BL, segment_ids_BL):
            return self.attention(x_MD, self.model.plan(position_ids_BL, segment_ids_BL))

    model, _ = rank_of(size, tp)
    rows = halves(ROWS * LENGTH, model.config.hidden_size)
    return compile_graph(WithPlan(model.model), rows, *[ints(ROWS, LENGTH)] * 2)


SMALLEST = {
    "rms_norm": norm,
    "swiglu": feed_forward,
    "incre_flash_attention": decoding,
    "kv_cache_scatter_update": decoding,
}
"""The smallest graph that calls an operator, where it is not the attention's."""


def test_the_smallest_graphs_compile_with_right_calls():
    for build, wanted in ((norm, FUSED[:1]), (feed_forward, FUSED[2:]), (attention, FUSED[:2])):
        assert all(name in build("0.6B", 1) for name in wanted), build.__name__


@pytest.mark.parametrize(
    ("name", "wrong"), [(name, wrong) for name, several in MISTAKES.items() for wrong in several]
)
def test_a_wrong_call_does_not_compile(monkeypatch, name, wrong):
    where, _ = ascend_contracts.OPERATORS[name]
    monkeypatch.setattr(where, name, wrong)
    build = SMALLEST.get(name, attention)
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        build("0.6B", 1)


def test_a_wrong_collective_does_not_compile():
    class Exchange(nn.Cell):
        def __init__(self, kind):
            super().__init__()
            self.group, self.kind = make_group("Ascend", "tp_0_4", [0, 1, 2, 3], 0), kind

        def construct(self, x):
            return self.group.gather_rows(x) if self.kind == "gather" else self.group.scatter_rows(x)

    compile_graph(Exchange("gather"), halves(6, 8))
    compile_graph(Exchange("scatter"), halves(8, 8))
    with pytest.raises((ValueError, RuntimeError), match="divided by 'rank_size'"):
        compile_graph(Exchange("scatter"), halves(6, 8))


def test_the_device_chooses_the_kernels():
    assert isinstance(make_kernels("CPU"), PortableKernels)
    assert isinstance(make_kernels("Ascend"), AscendKernels)
    with pytest.raises(ConfigError, match="device_target='GPU' is not supported"):
        make_kernels("GPU")
