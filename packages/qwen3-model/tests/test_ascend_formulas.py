"""The Ascend code's numbers: run op by op with each operator's documented formula in float64 in its place.

It must give what the portable kernels give. Then each call is made wrongly once, which must not go unnoticed.
"""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from ascend_contracts import HALVES, OPERATORS
from ascend_formulas import Formulas
from mindspore import Tensor, mint, ops

from qwen3_model.config import SIZES
from qwen3_model.errors import ConfigError
from qwen3_model.network.cache import BlockCache
from qwen3_model.network.kernels.ascend import AscendKernels
from qwen3_model.network.kernels.portable import PortableKernels
from qwen3_model.network.loading import init_model
from qwen3_model.network.model import CachedQwen3, Qwen3ForCausalLM
from qwen3_model.ranks.layout import Part

CONFIG = dataclasses.replace(
    SIZES["0.6B"], hidden_size=48, intermediate_size=80, num_layers=1, num_heads=4, num_kv_heads=2,
    head_dim=16, vocab_size=97, max_position_embeddings=64, initializer_range=0.3,
)  # fmt: skip
FLOAT32_ATOL = 2e-5  # float32 between the operators; the logits reach about 4
BFLOAT16_ATOL = 0.25  # eight bits between the operators, over two layers; seen 0.1
WRONG = 0.02  # what a wrong call changes at least, far from the rounding of float32
BLOCK = 16
CAPACITY = 4 * BLOCK
SEEN = set()
"""Types of what the norms have been given."""


@ms.jit_class
class Float32Kernels(AscendKernels):
    """The same calls without bfloat16's rounding."""

    compute_dtype = ms.float32


@ms.jit_class
class CpuMatmul(AscendKernels):
    """The same calls where bfloat16 matrices cannot be multiplied."""

    def linear(self, x_MD, weight_OD):
        return self._matmul(x_MD.astype(ms.float32), weight_OD.astype(ms.float32)).astype(x_MD.dtype)

    def rms_norm(self, x_MD, weight_D, eps):
        SEEN.add(str(x_MD.dtype))
        return super().rms_norm(x_MD, weight_D, eps)


@pytest.fixture(autouse=True)
def op_by_op():
    """The formulas take the operators' place one call at a time; a run before may have left graph mode on."""
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=mode)


def model_with(kernels):
    model = Qwen3ForCausalLM(CONFIG, kernels)
    init_model(model, 5)
    return model


@pytest.fixture(scope="module")
def portable():
    return model_with(PortableKernels())


@pytest.fixture(scope="module")
def ascend():
    return model_with(Float32Kernels())


@pytest.fixture
def formulas(monkeypatch):
    return Formulas(halves=(*HALVES, ms.float32)).install(monkeypatch)


def ids(*shape, seed=1):
    return Tensor(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape).astype(np.int32))


def int32(values):
    return Tensor(np.array(values, np.int32))


def packed():
    """Two rows of documents kept apart, with their own positions."""
    segments = int32([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 2]])
    return ids(2, 7), int32([[0, 1, 2, 0, 1, 2, 3], [0, 1, 0, 1, 0, 1, 2]]), segments


class Room:
    """Two rows of a cache of either kind, and what a step is told of them."""

    def __init__(self, kernels):
        self.is_blocks = isinstance(kernels, AscendKernels)
        if self.is_blocks:
            cache = BlockCache(CONFIG, 2 * CAPACITY // BLOCK, kernels.compute_dtype, BLOCK)
        else:
            cache = kernels.make_cache(CONFIG, 2, CAPACITY)
        self.cache, self.blocks = cache, CAPACITY // BLOCK

    def piece(self, row, position, length):
        if not self.is_blocks:
            return int32([row])
        first = row * self.blocks
        writes = [[first + block, 0] for block in range(position // BLOCK, (position + length) // BLOCK)]
        return int32(writes), int32(range(first, first + self.blocks))

    def tokens(self, positions):
        if not self.is_blocks:
            return None
        writes = [[row * self.blocks + at // BLOCK, at % BLOCK] for row, at in enumerate(positions)]
        table = [range(row * self.blocks, (row + 1) * self.blocks) for row in range(2)]
        return int32(writes), int32(table), tuple(at + 1 for at in positions)


def packed_by_ends(model):
    text, positions, segments = packed()
    return model(text, positions, model.kernels.segments(segments.asnumpy())).asnumpy()


def cached_logits(model):
    """A prompt read in two pieces into the second row, then two tokens decoded in both rows."""
    room = Room(model.kernels)
    step = CachedQwen3(model, room.cache)
    step.set_train(False)
    prompt, other = ids(1, 3 * BLOCK), ids(1, BLOCK, seed=2)
    places = int32([range(3 * BLOCK)])
    found = [
        step(prompt[:, :BLOCK], places[:, :BLOCK], int32([BLOCK - 1]), room.piece(1, 0, BLOCK)),
        step(prompt[:, BLOCK:], places[:, BLOCK:], int32([6]), room.piece(1, BLOCK, 2 * BLOCK)),
        step(other, places[:, :BLOCK], int32([3]), room.piece(0, 0, BLOCK)),
    ]
    for added in range(2):  # over what filled the last pieces up
        at = [4 + added, BLOCK + 7 + added]
        found.append(
            step(ids(2, 1, seed=3 + added), int32([[each] for each in at]), int32([0, 0]), room.tokens(at))
        )
    return np.concatenate([each.asnumpy() for each in found])


WAYS = {
    "causal order": lambda model: model(ids(2, 9)).asnumpy(),
    "documents kept apart": lambda model: model(*packed()).asnumpy(),
    "documents by their ends": packed_by_ends,
    "pieces and decoding": cached_logits,
}


@pytest.fixture(scope="module")
def wanted(portable):
    return {name: way(portable) for name, way in WAYS.items()}


def normal(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape, np.float32))


def test_each_portable_operation_is_the_documented_formula():
    formulas, kernels = Formulas(halves=(ms.float32,)), PortableKernels()
    b, length, n, k, h = 2, 5, 4, 2, 16
    x, weight = normal(6, 24), normal(24, seed=1)
    pairs = {"norm": (kernels.rms_norm(x, weight, 1e-6), formulas.rms_norm(x, weight, 1e-6)[0])}
    gate, up = normal(6, 24, seed=2), normal(6, 24, seed=3)
    pairs["swiglu"] = kernels.swiglu(gate, up), formulas.swiglu(ops.cat((gate, up), -1), -1)
    angles = normal(b, length, h // 2, seed=4)
    cos, sin = ops.cos(angles), ops.sin(angles)
    plan = kernels.plan(cos, sin, None, n, k)
    turns = [ops.cat((turn, turn), -1).expand_dims(2) for turn in (cos, sin)]
    q = normal(b * length * n, h, seed=5)
    turned = formulas.rotary_position_embedding(q.reshape(b, length, n, h), *turns, 0)
    pairs["rotary"] = kernels.rotate_queries(q, plan), turned.reshape(-1, h)
    keys, values = normal(b * length * k, h, seed=6), normal(b * length * k, h, seed=7)
    found = kernels.attention(q, kernels.heads_first(keys, plan), kernels.heads_first(values, plan), plan)
    later = Tensor(np.triu(np.ones((2048, 2048), np.uint8), 1))
    rows = [each.reshape(b, length, -1) for each in (q, keys, values)]
    documented = formulas.flash_attention_score(
        *rows, n, attn_mask=later, scalar_value=h**-0.5, sparse_mode=2
    )
    pairs["attention"] = found, documented.reshape(-1, h)
    for name, (ours, theirs) in pairs.items():
        np.testing.assert_allclose(ours.asnumpy(), theirs.asnumpy(), rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_the_ascend_code_computes_what_the_portable_kernels_compute(ascend, formulas, wanted, way):
    np.testing.assert_allclose(WAYS[way](ascend), wanted[way], rtol=0, atol=FLOAT32_ATOL)


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_rounds_and_every_operator_gets_the_types_that_it_takes(monkeypatch, wanted, way):
    formulas = Formulas().install(monkeypatch)
    found = WAYS[way](model_with(CpuMatmul()))
    np.testing.assert_allclose(found, wanted[way], rtol=0, atol=BFLOAT16_ATOL)
    expected = {"rms_norm", "swiglu", "rotary_position_embedding", "flash_attention_score"}
    if way == "pieces and decoding":
        expected |= {"incre_flash_attention", "kv_cache_scatter_update"}
    assert set(formulas.called) == expected


def test_a_float32_residual_stream_keeps_what_a_bfloat16_one_rounds_away(monkeypatch):
    text, part = ids(1, 6), Part(layers=range(4), is_last=False)

    def added(kernels):
        """What four layers add to large embeddings."""
        model = Qwen3ForCausalLM(dataclasses.replace(CONFIG, num_layers=8), kernels, part=part)
        init_model(model, 5)
        table = model.model.embed_tokens.weight
        table.set_data(Tensor(np.round(table.asnumpy() * 64) * 64))  # whole numbers, which bfloat16 has
        before = table.asnumpy()[text.asnumpy()[0]]
        return model.model(text).astype(ms.float32).asnumpy() - before

    wanted = added(PortableKernels())
    Formulas().install(monkeypatch)
    errors, streams = {}, {}
    for is_float32 in (False, True):
        SEEN.clear()
        difference = added(CpuMatmul(float32_residual=is_float32)) - wanted
        errors[is_float32] = np.sqrt(np.mean(difference**2) / np.mean(wanted**2))
        streams[is_float32] = set(SEEN)
    # The norms of queries and keys read what is no part of the stream.
    assert streams == {False: {"BFloat16"}, True: {"BFloat16", "Float32"}}
    assert errors[True] < 0.02
    assert errors[False] > 0.1


def swapped(first, second):
    def change(arguments, named):
        arguments = list(arguments)
        arguments[first], arguments[second] = arguments[second], arguments[first]
        return arguments, named

    return change


def argument(place, change):
    def changed(arguments, named):
        if isinstance(place, str):
            return arguments, named | {place: change(named[place])}
        return [change(each) if i == place else each for i, each in enumerate(arguments)], named

    return changed


def without(name):
    return lambda arguments, named: (arguments, {key: value for key, value in named.items() if key != name})


def other_mask(mask):
    return mint.logical_not(mask.astype(ms.bool_)).astype(ms.uint8)


def float16(x):
    return x.astype(ms.float16)


def transposed(x):
    return x.swapaxes(-1, -2)


ATTEND, DECODE, STORE = "flash_attention_score", "incre_flash_attention", "kv_cache_scatter_update"
TURN = "rotary_position_embedding"
MISTAKES = {
    "norm: arguments swapped": ("rms_norm", swapped(0, 1)),
    "norm: weight of another type": ("rms_norm", argument(1, float16)),
    "norm: eps of 1": ("rms_norm", argument(2, lambda eps: 1.0)),
    "swiglu: the other half": ("swiglu", argument(0, lambda x: ops.roll(x, x.shape[1] // 2, 1))),
    "swiglu: other axis": ("swiglu", argument(1, lambda dim: 0)),
    "rotary: cos and sin swapped": (TURN, swapped(1, 2)),
    "rotary: heads before tokens": (TURN, argument(0, lambda x: x.transpose(0, 2, 1, 3))),
    "rotary: half-width tables": (TURN, argument(1, lambda cos: cos[..., :8])),
    "rotary: interleaved": (TURN, argument(3, lambda mode: 1)),
    "rotary: table of another type": (TURN, argument(2, float16)),
    "attention: queries and keys swapped": (ATTEND, swapped(0, 1)),
    "attention: keys and values swapped": (ATTEND, swapped(1, 2)),
    "attention: other number of heads": (ATTEND, argument(3, lambda n: n // 2)),
    "attention: no scale": (ATTEND, without("scalar_value")),
    "attention: mask turned round": (ATTEND, argument("attn_mask", other_mask)),
    "attention: mask transposed": (ATTEND, argument("attn_mask", transposed)),
    "attention: mask of floats": (ATTEND, argument("attn_mask", lambda mask: mask.astype(ms.float32))),
    "attention: other sparse mode": (ATTEND, argument("sparse_mode", lambda mode: 2 - mode)),
    "attention: other layout": (ATTEND, argument("input_layout", lambda layout: "SBH")),
    "attention: values of another type": (ATTEND, argument(2, float16)),
    "decoding: keys and values swapped": (DECODE, swapped(1, 2)),
    "decoding: keys not in a list": (DECODE, argument(1, lambda keys: keys[0])),
    "decoding: one token too few": (
        DECODE,
        argument("actual_seq_lengths", lambda n: tuple(x - 1 for x in n)),
    ),
    "decoding: lengths on the device": (
        DECODE,
        argument("actual_seq_lengths", lambda n: Tensor(np.array(n))),
    ),
    "decoding: no lengths": (DECODE, without("actual_seq_lengths")),
    "decoding: rows swapped": (DECODE, argument("block_table", lambda table: table[::-1])),
    "decoding: blocks of int64": (DECODE, argument("block_table", lambda table: table.astype(ms.int64))),
    "decoding: other size of blocks": (DECODE, argument("block_size", lambda size: 2 * size)),
    "decoding: no scale": (DECODE, without("scale_value")),
    "decoding: other number of heads": (DECODE, argument("num_heads", lambda n: n // 2)),
    "decoding: number of key heads left out": (DECODE, without("num_key_value_heads")),
    "store: cache and new rows swapped": (STORE, swapped(0, 2)),
    "store: places swapped": (STORE, argument(1, lambda places: places[:, ::-1])),
    "store: places of int64": (STORE, argument(1, lambda places: places.astype(ms.int64))),
    "store: next block": (STORE, argument(1, lambda places: places + int32([[1, 0]]))),
    "store: other axis": (STORE, argument(3, lambda axis: 2)),
    "store: rows of another type": (STORE, argument(2, float16)),
}


WHERE_CALLED = {
    ATTEND: ["causal order", "documents kept apart"],
    DECODE: ["pieces and decoding"],
    STORE: ["pieces and decoding"],
}


def test_ends_of_documents_are_counted_over_all_rows_and_filled_up():
    segments = packed()[2].asnumpy()
    ends = AscendKernels().segments(segments)
    assert (ends[:5], set(ends[5:]), len(ends)) == ((3, 7, 9, 11, 14), {14}, 128)
    many = AscendKernels().segments(np.arange(300).reshape(2, 150))
    assert (many[:300], len(many)) == (tuple(range(1, 301)), 512)
    # A row ends a document even if the next one begins with the same number.
    assert AscendKernels().segments(np.zeros((2, 4), np.int32))[:3] == (4, 8, 8)
    assert len(AscendKernels().segments(np.arange(2048)[None])) == 2048
    with pytest.raises(ConfigError, match=r"holds 2,049 documents .* at most 2,048: lower runner_config"):
        AscendKernels().segments(np.arange(2049)[None])


ENDS = "actual_seq_qlen", "actual_seq_kvlen"
OF_DOCUMENTS = {
    "no end of the first document": [argument(name, lambda ends: ends[1:]) for name in ENDS],
    "other ends for the keys": [argument(ENDS[1], lambda ends: (5, *ends[1:]))],
    "causal order of all": [argument("sparse_mode", lambda mode: 2)],
    "mask transposed": [argument("attn_mask", transposed)],
    "no scale": [without("scalar_value")],
    "keys and values swapped": [swapped(1, 2)],
    "heads side by side": [argument(0, lambda q: q.reshape(1, q.shape[0], -1))],
    "other layout": [argument("input_layout", lambda layout: "BSH")],
}


@pytest.mark.parametrize("mistake", OF_DOCUMENTS)
def test_a_wrong_call_with_documents_is_noticed(monkeypatch, ascend, formulas, wanted, mistake):
    where, right = OPERATORS[ATTEND][0], formulas.flash_attention_score

    def wrong(*arguments, **named):
        for change in OF_DOCUMENTS[mistake]:
            arguments, named = change(arguments, named)
        return right(*arguments, **named)

    monkeypatch.setattr(where, ATTEND, wrong)
    try:
        found = packed_by_ends(ascend)
    except Exception:  # refused, by the formula or by an operator after it
        return
    assert np.abs(found - wanted["documents by their ends"]).max() > WRONG


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_call_is_noticed(monkeypatch, ascend, formulas, wanted, mistake):
    name, change = MISTAKES[mistake]
    where, right = OPERATORS[name][0], getattr(formulas, name)

    def wrong(*arguments, **named):
        arguments, named = change(arguments, named)
        return right(*arguments, **named)

    monkeypatch.setattr(where, name, wrong)
    for way in WHERE_CALLED.get(name, ["causal order"]):
        try:
            found = WAYS[way](ascend)
        except Exception:  # refused, by the formula or by an operator after it
            continue
        largest = np.abs(found - wanted[way]).max()
        assert largest > WRONG, f"{way}: the wrong call changes the logits by {largest} only"
