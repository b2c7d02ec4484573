"""What a device's step is told of pieces and batches, and tokens chosen from the likeliest alone."""

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from mindspore.common.api import _JitExecutor

from qwen3_infer.engine.rooms import Blocks, make_rooms
from qwen3_infer.sampling.logits import LikeliestRows
from qwen3_infer.sampling.sampling import Sampling, choose, choose_among, make_generator
from qwen3_infer.schedule.generator import run
from qwen3_infer.schedule.scheduler import Scheduler
from qwen3_infer.steps.pieces import DEVICE_PIECES, cut
from qwen3_model.config import SIZES
from qwen3_model.network.cache import BLOCK_TOKENS
from qwen3_model.network.kernels.ascend import AscendKernels

TINY = {
    "num_layers": 1, "hidden_size": 64, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "vocab_size": 64,
}  # fmt: skip


@pytest.fixture
def rooms():
    return make_rooms(AscendKernels(), dataclasses.replace(SIZES["0.6B"], **TINY), 3, 8192, 3 * 8192)


def test_a_devices_pieces_fill_whole_blocks_in_long_pieces():
    pieces = list(cut(1500, 0, DEVICE_PIECES))
    assert [length for _, length in pieces] == [512, 512, 128, 128, 128, 128]
    assert all(start % BLOCK_TOKENS == 0 for start, _ in pieces)


def test_a_piece_names_the_blocks_that_it_fills_and_those_so_far(rooms):
    assert isinstance(rooms, Blocks)
    writes, blocks = (each.asnumpy() for each in rooms.piece(8192, 1024, 512))
    np.testing.assert_array_equal(writes, [[72, 0], [73, 0], [74, 0], [75, 0]])
    assert len(blocks) == 16
    np.testing.assert_array_equal(blocks[:12], range(64, 76))
    assert set(blocks[12:]) == {64}


def test_attention_of_a_prompt_is_compiled_for_few_lengths_and_none_is_much_too_long(rooms):
    sizes = [rooms.num_blocks(count) for count in range(1, 65)]
    assert sorted(set(sizes)) == [4, 16, 64]
    assert all(size >= count and size <= max(4, 4 * count) for count, size in enumerate(sizes, 1))
    for length in DEVICE_PIECES:
        found = {len(rooms.piece(0, at, length)[1]) for at in rooms.warm_up_positions(length)}
        wanted = {len(rooms.piece(0, at, length)[1]) for at in range(0, 8193 - length, BLOCK_TOKENS)}
        assert found == wanted


def test_idle_rows_have_one_token_in_the_room_behind_all_regions(rooms):
    starts, tokens, positions = (np.array(each, np.int32) for each in ([8192, 0, 0], [5, 6, 7], [200, 0, 1]))
    tokens_R, positions_R, (writes, table, lengths) = rooms.batch(starts, tokens, positions)
    np.testing.assert_array_equal(tokens_R, [5, 6, 7, 0])
    np.testing.assert_array_equal(positions_R, [200, 0, 1, 0])
    np.testing.assert_array_equal(writes.asnumpy(), [[65, 72], [0, 0], [0, 1], [192, 0]])
    assert tuple(lengths) == (201, 1, 2, 1)
    assert all(type(length) is int for length in lengths)
    assert table.asnumpy().shape == (4, 64)
    assert table.asnumpy().max() == 192 == rooms.cache.num_rows - 1
    np.testing.assert_array_equal(table.asnumpy()[0, :2], [64, 65])


def test_other_places_and_lengths_compile_nothing_anew(rooms, monkeypatch):
    phases = []
    compiled = _JitExecutor.compile
    monkeypatch.setattr(
        _JitExecutor, "compile", lambda *each, **named: phases.append(compiled(*each, **named)) or phases[-1]
    )

    class Step(nn.Cell):
        def construct(self, where):
            return where[0] + where[1].reshape(-1)[0] + (where[2][0] if len(where) == 3 else 0)

    step = ms.jit(Step().construct)
    for start in (0, 8192):
        step(rooms.piece(start, 1024 + start // 64, 512))
    assert len(phases) == 2
    assert len(set(phases)) == 1
    for start in (0, 8192):
        step(rooms.batch(*np.array([[start], [5], [start // 8]], np.int32))[2])
    assert len(phases) == 4
    assert len(set(phases)) == 2


class OnDevice:
    """A tensor of which is known how often it came to the host."""

    def __init__(self, values):
        self.values, self.fetched = values, 0

    def asnumpy(self):
        self.fetched += 1
        return self.values


def device_rows(logits_RV, count=64):
    order = np.argsort(-logits_RV, axis=1)[:, :count]
    order = order[:, np.random.default_rng(0).permutation(order.shape[1])]  # in any order
    tensors = [OnDevice(logits_RV), OnDevice(np.take_along_axis(logits_RV, order, 1)), OnDevice(order)]
    return LikeliestRows(*tensors), tensors


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
        {"temperature": 1.3, "top_k": 63, "min_p": 0.01},
    ],
)
def test_the_likeliest_give_what_all_give_with_the_same_random_numbers(settings):
    logits_RV = np.random.default_rng(1).normal(0, 4, (200, 500)).astype(np.float32)
    sampling, rows = Sampling(**settings), device_rows(logits_RV)[0]
    one, two = make_generator(3, 0), make_generator(3, 0)
    for row, logits_V in enumerate(logits_RV):
        assert rows[row].choose(sampling, one) == choose(
            logits_V, sampling, 0.0 if sampling.is_greedy else two.random()
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 64},
        {"temperature": 0.0, "repetition_penalty": 1.1},
        {"temperature": 0.6, "top_k": 20, "presence_penalty": 0.5},
    ],
)
def test_what_others_may_decide_is_left_to_all_logits_and_draws_nothing(settings):
    values, ids = np.arange(64, dtype=np.float32), np.arange(64)
    rng = make_generator(3, 0)
    assert choose_among(values, ids, Sampling(**settings), rng) is None
    assert rng.random() == make_generator(3, 0).random()


def test_equal_logits_go_by_id_and_by_all_where_the_cut_lies_among_them():
    ids = np.array([9, 4, 7, 1])
    assert choose_among(np.array([2, 5, 5, 1], np.float32), ids, Sampling(temperature=0.0), None) == 4
    assert choose_among(np.array([5, 5, 5, 5], np.float32), ids, Sampling(temperature=0.0), None) is None
    cut_among = Sampling(temperature=1.0, top_k=3)
    assert choose_among(np.array([2, 5, 5, 2], np.float32), ids, cut_among, make_generator(0, 0)) is None
    not_finite = np.array([np.nan, 5, 4, 3], np.float32)
    assert choose_among(not_finite, ids, Sampling(temperature=0.0), None) is None


class DeviceEngine:
    """An engine whose logits stay on its device."""

    num_rows, num_tokens, unit, shares_beginnings = 2, 1024, 128, False
    pieces = DEVICE_PIECES

    def __init__(self):
        self.tensors = []

    def read(self, start, ids, position, length):
        return self._rows(1)[0]

    def decode(self, starts_B, tokens_B, positions_B):
        rows = self._rows(len(starts_B))
        return [rows[row] for row in range(len(starts_B))]

    def _rows(self, count):
        rows, tensors = device_rows(np.random.default_rng(len(self.tensors)).normal(0, 1, (count, 500)))
        self.tensors.append(tensors)
        return rows


class NoText:
    def decode(self, ids, skip_special=True):
        return ""


def test_whole_logits_leave_the_device_only_where_they_are_asked_for(make_request):
    for settings, num_whole in [({"temperature": 0.0}, 0), ({"temperature": 1.0, "top_p": 0.9}, 4)]:
        engine = DeviceEngine()
        request = make_request(range(1, 700), new_tokens=4, **settings)
        (done,) = run([request], Scheduler(engine, NoText()))
        assert len(done.ids) == 4
        assert sum(tensors[0].fetched for tensors in engine.tensors) == num_whole
        # Of a prompt's pieces only the last one's logits are wanted.
        assert engine.tensors[0][1].fetched == 0
