"""The kernels one by one against numpy."""

import ctypes
import mmap
import shutil

import numpy as np
import pytest

from qwen3_infer.native.build import native_library, require_bfloat16
from qwen3_model.device.native_build import BuildError

RTOL_F32 = 1e-5  # sums of up to a few thousand products in another order
NUM_THREADS = 2


@pytest.fixture(scope="module")
def library(cache_dir):
    return native_library(cache_dir, NUM_THREADS)


@pytest.fixture(params=["vectors", "tiles"])
def call(library, request):
    loaded = ctypes.CDLL(str(library))
    if not loaded.qwen3_use_tiles(request.param == "tiles") and request.param == "tiles":
        pytest.skip("this processor has no tile multiplier")

    def call(name, *arrays):
        """Call a kernel as MindSpore does; uint16 stands for bfloat16, the last array is the output."""
        count = len(arrays)
        pointers = (ctypes.c_void_p * count)(*[array.ctypes.data for array in arrays])
        dims = (ctypes.c_int * count)(*[array.ndim for array in arrays])
        shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
        shape_pointers = (ctypes.c_void_p * count)(*[ctypes.addressof(shape) for shape in shapes])
        names = [b"bfloat16" if array.dtype == np.uint16 else array.dtype.name.encode() for array in arrays]
        types = (ctypes.c_char_p * count)(*names)
        return getattr(loaded, name)(count, pointers, dims, shape_pointers, types, None, None)

    yield call
    loaded.qwen3_use_tiles(1)


def bfloat16(values):
    """Cut float32 values down to bfloat16; return the bits and what they mean."""
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 6, 7, 9, 33])
@pytest.mark.parametrize(
    ("num_inputs", "num_outputs"), [(64, 40), (24, 7), (100, 33), (31, 1), (1024, 70), (2085, 101)]
)
@pytest.mark.parametrize("is_bfloat16", [True, False])
def test_linear_is_the_matrix_product(call, num_rows, num_inputs, num_outputs, is_bfloat16):
    rng = np.random.default_rng(num_rows)
    x = rng.standard_normal((num_rows, num_inputs)).astype(np.float32)
    bits, wide = bfloat16(rng.standard_normal((num_outputs, num_inputs)).astype(np.float32))
    y = np.full((num_rows, num_outputs), np.nan, np.float32)
    assert call("qwen3_linear", x, bits if is_bfloat16 else wide, y) == 0
    exact = x.astype(np.float64) @ wide.T.astype(np.float64)
    np.testing.assert_allclose(y, exact, rtol=0, atol=RTOL_F32 * num_inputs**0.5)


def test_rows_are_not_rounded_before_they_are_multiplied(call):
    # What is left after all large products cancel lies 2^-23 below them.
    rng = np.random.default_rng(8)
    x = rng.standard_normal((19, 64)).astype(np.float32)
    x[:, 32:] = -x[:, :32] * np.float32(1 - 2**-23)
    bits, wide = bfloat16(rng.standard_normal((40, 32)).astype(np.float32))
    found = np.empty((19, 40), np.float32)
    call("qwen3_linear", x, np.hstack((bits, bits)), found)
    exact = (x[:, :32].astype(np.float64) + x[:, 32:]) @ wide.T.astype(np.float64)
    upper = np.abs(x[:, :32].astype(np.float64)) @ np.abs(wide.T.astype(np.float64))
    assert (np.abs(found - exact) < 2**-21 * upper).all()


@pytest.mark.parametrize("num_inputs", [200, 1024, 2085])
@pytest.mark.parametrize("is_bfloat16", [True, False])
def test_a_row_has_the_same_bits_in_any_number_of_rows(call, num_inputs, is_bfloat16):
    rng = np.random.default_rng(0)
    most = 21
    x = rng.standard_normal((most, num_inputs)).astype(np.float32)
    bits, wide = bfloat16(rng.standard_normal((101, num_inputs)).astype(np.float32))
    weight = bits if is_bfloat16 else wide
    together = np.empty((most, 101), np.float32)
    call("qwen3_linear", x, weight, together)
    for count in range(1, most):
        some = np.empty((count, 101), np.float32)
        call("qwen3_linear", x[most - count :].copy(), weight, some)
        np.testing.assert_array_equal(some, together[most - count :])


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(24, 7), (1024, 101), (2085, 50)])
def test_rounded_inputs_are_rounded_once_and_a_row_has_the_same_bits_in_any_number(
    call, library, num_inputs, num_outputs
):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((21, num_inputs)).astype(np.float32)
    bits, wide = bfloat16(rng.standard_normal((num_outputs, num_inputs)).astype(np.float32))
    together = np.empty((21, num_outputs), np.float32)
    if call("qwen3_linear_rounded", x, bits, together):
        with pytest.raises(BuildError, match="needs a processor with AVX512-BF16"):
            require_bfloat16(library)
        return
    require_bfloat16(library)
    words = x.view(np.uint32)
    nearest = ((words + 0x7FFF + (words >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    exact = nearest.astype(np.float64) @ wide.T.astype(np.float64)
    np.testing.assert_allclose(together, exact, rtol=0, atol=RTOL_F32 * num_inputs**0.5)
    for count in range(1, 21):
        some = np.empty((count, num_outputs), np.float32)
        call("qwen3_linear_rounded", x[21 - count :].copy(), bits, some)
        np.testing.assert_array_equal(some, together[21 - count :])


def before_a_guard(array):
    """Return a copy whose last byte lies before a page that nobody may touch."""
    page, size = mmap.PAGESIZE, array.nbytes
    room = mmap.mmap(-1, -(-size // page) * page + page)
    start = len(room) - page - size
    copy = np.frombuffer(room, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    guard = ctypes.addressof(ctypes.c_char.from_buffer(room)) + len(room) - page
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(guard), page, 0) == 0  # PROT_NONE
    return copy


@pytest.mark.parametrize("num_rows", [1, 8, 9, 17, 33])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 64), (31, 33), (100, 17), (1024, 70)])
@pytest.mark.parametrize("name", ["qwen3_linear", "qwen3_linear_rounded"])
def test_products_touch_nothing_behind_their_arrays(call, name, num_rows, num_inputs, num_outputs):
    x = before_a_guard(np.ones((num_rows, num_inputs), np.float32))
    bits, _ = bfloat16(np.ones((num_outputs, num_inputs), np.float32))
    found = before_a_guard(np.zeros((num_rows, num_outputs), np.float32))
    if call(name, x, before_a_guard(bits), found) == 0:
        np.testing.assert_array_equal(found, num_inputs)


def test_embed_widens_rows_and_refuses_ids_outside(call):
    bits, wide = bfloat16(np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32))
    found = np.empty((3, 6), np.float32)
    assert call("qwen3_embed", bits, np.array([9, 0, 9], np.int32), found) == 0
    np.testing.assert_array_equal(found, wide[[9, 0, 9]])
    assert call("qwen3_embed", bits, np.array([0, 10, 0], np.int32), found) == 1


@pytest.mark.parametrize("width", [24, 128, 1024])
def test_rms_norm_is_its_formula(call, width):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((70, width)).astype(np.float32)
    bits, weight = bfloat16(rng.standard_normal(width).astype(np.float32))
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-6) * weight
    for given in (bits, weight):
        found = np.empty_like(x)
        assert call("qwen3_rms_norm", x, given, np.array([1e-6], np.float32), found) == 0
        np.testing.assert_allclose(found, expected, rtol=RTOL_F32)


def test_swiglu_is_its_formula(call):
    rng = np.random.default_rng(2)
    gate, up = (rng.standard_normal((90, 100)).astype(np.float32) * 5 for _ in range(2))
    found = np.empty_like(gate)
    assert call("qwen3_swiglu", gate, up, found) == 0
    np.testing.assert_allclose(found, gate / (1 + np.exp(-gate.astype(np.float64))) * up, rtol=RTOL_F32)


def test_rotate_turns_halves_by_each_tokens_angle(call):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2 * 3 * 4, 8)).astype(np.float32)  # 2 rows of 3 tokens with 4 heads
    angles = rng.standard_normal((2, 3, 4)).astype(np.float32)
    found = np.empty_like(x)
    assert call("qwen3_rotate", x, np.cos(angles), np.sin(angles), found) == 0
    pairs = x.reshape(2, 3, 4, 2, 4)
    turned = (pairs[..., 0, :] + 1j * pairs[..., 1, :]) * np.exp(1j * angles)[:, :, None]
    expected = np.stack([turned.real, turned.imag], axis=3).reshape(x.shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cached_attention_writes_and_reads_each_rows_own_slots(call):
    rng = np.random.default_rng(4)
    batch, length, num_heads, num_kv_heads, width, capacity = 2, 3, 4, 2, 24, 9
    q = rng.standard_normal((batch * length * num_heads, width)).astype(np.float32)
    k, v = (rng.standard_normal((batch * length * num_kv_heads, width)).astype(np.float32) for _ in range(2))
    keys, values = (
        rng.standard_normal((batch * num_kv_heads * capacity, width)).astype(np.float32) for _ in range(2)
    )
    keys_before = keys.copy()
    positions = np.array([[4, 5, 6], [0, 1, 2]], np.int32)
    starts = np.arange(batch * num_kv_heads, dtype=np.int32).reshape(batch, num_kv_heads, 1) * capacity
    slots = (starts + positions[:, None]).reshape(-1)
    found = np.empty_like(q)
    assert call("qwen3_cached_attention", q, k, v, keys, values, slots, positions, found) == 0

    rows = keys.reshape(batch, num_kv_heads, capacity, width)
    new = k.reshape(batch, length, num_kv_heads, width)
    untouched = np.ones(len(keys), bool)
    untouched[slots] = False
    np.testing.assert_array_equal(keys[untouched], keys_before[untouched])
    for b in range(batch):
        for place, position in enumerate(positions[b]):
            np.testing.assert_array_equal(rows[b, :, position], new[b, place])
            for head in range(num_heads):
                seen = rows[b, head // 2, : position + 1].astype(np.float64)
                query = q.reshape(batch, length, num_heads, width)[b, place, head]
                weights = np.exp(seen @ query / width**0.5)
                stored = values.reshape(batch, num_kv_heads, capacity, width)[b, head // 2, : position + 1]
                expected = weights / weights.sum() @ stored
                got = found.reshape(batch, length, num_heads, width)[b, place, head]
                np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("slots", "positions"),
    [
        ([[-1, 0]], [[0, 1]]),  # before the cache
        ([[7, 8]], [[0, 1]]),  # behind it
        ([[1, 2]], [[2, 3]]),  # the row begins before the cache
        ([[2, 3]], [[-1, 0]]),
        ([[3, 2]], [[2, 3]]),  # two rows at once
        ([[0, 2**31 - 1]], [[0, 2**31 - 1]]),
    ],
)
def test_cached_attention_refuses_slots_outside_and_writes_nothing(call, slots, positions):
    q, k, v = (np.ones((2, 8), np.float32) for _ in range(3))
    keys, values, found = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32), np.zeros_like(q)
    places = np.array(slots, np.int32).reshape(-1), np.array(positions, np.int32)
    assert call("qwen3_cached_attention", q, k, v, keys, values, *places, found) == 1
    assert not keys.any()
    assert not values.any()
    assert not found.any()


def test_arguments_of_the_wrong_shape_are_refused(call):
    x, w, y = np.zeros((2, 4), np.float32), np.zeros((3, 5), np.float32), np.zeros((2, 3), np.float32)
    assert call("qwen3_linear", x, w, y) == 1
    assert call("qwen3_swiglu", x, w, x.copy()) == 1
    assert (
        call("qwen3_rotate", x, np.zeros((1, 2, 3), np.float32), np.zeros((1, 2, 3), np.float32), x.copy())
        == 1
    )
    keys, slots, positions = (
        np.zeros((8, 4), np.float32),
        np.arange(2, dtype=np.int32),
        np.arange(2, dtype=np.int32),
    )
    arguments = [x, x, x, keys, keys, slots, positions[None], x.copy()]
    assert call("qwen3_cached_attention", *arguments) == 0
    for place, wrong in [
        (1, w),
        (2, x[:1]),
        (3, np.zeros((8, 5), np.float32)),
        (4, keys[:7]),
        (5, slots[:1]),
    ]:
        assert call("qwen3_cached_attention", *arguments[:place], wrong, *arguments[place + 1 :]) == 1


@pytest.mark.parametrize("place", ["library", "folder"])
def test_a_library_that_others_could_have_written_is_not_loaded(tmp_path, library, place):
    from qwen3_infer.device import Device
    from qwen3_infer.native.build import find_library

    (tmp_path / "cache").mkdir(mode=0o700)
    shutil.copy(library, tmp_path / "cache")
    (tmp_path / "cache" / (library.name if place == "library" else "")).chmod(0o777)
    notes = []
    device = Device(target="CPU", kernels="auto", num_threads=1, cache_dir=tmp_path / "cache")
    assert find_library(device, notes.append) is None
    (note,) = notes
    assert "can be written by others" in note
    assert note.endswith("going on with MindSpore's own operators, several times slower")
