"""`--kernels native-bf16`: near the exact kernels, and the same bits in any batch."""

from pathlib import Path

import numpy as np
import pytest

from qwen3_infer.device import Device
from qwen3_infer.processes.local import open_local
from qwen3_model.device.native_build import BuildError

GOLDEN_DIR = Path(__file__).parent / "golden/tied"
IDS = [int(number) for number in np.random.default_rng(0).integers(0, 320, 75)]


@pytest.fixture(scope="module")
def make_engine(cache_dir):
    def make(kernels):
        device = Device(target="CPU", kernels=kernels, num_threads=2, cache_dir=cache_dir)
        return open_local(GOLDEN_DIR, device, quiet=True, note=pytest.fail).engine(4, 128)

    return make


def test_logits_are_those_of_rounded_inputs_and_the_same_in_any_batch(make_engine):
    try:
        rounded = make_engine("native-bf16")
    except BuildError as error:
        assert "needs a processor with AVX512-BF16" in str(error)  # noqa: PT017
        pytest.skip("this processor does not multiply bfloat16")
    exact = make_engine("native")
    found, wanted = (engine.read(0, IDS[:64], 0, 128) for engine in (rounded, exact))
    assert not np.array_equal(found, wanted)
    # Each product of a layer carries 2^-9 of its inputs; three layers and the head add up.
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()

    starts = np.array([0, 32, 64], np.int32) * 4
    for start in starts[:2].tolist():
        rounded.read(start, IDS[:32], 0, 32)
    together = rounded.decode(starts[:2], np.array([7, 7], np.int32), np.array([32, 32], np.int32))
    np.testing.assert_array_equal(together[0], together[1])
    alone = rounded.decode(starts[1:2], np.array([7], np.int32), np.array([32], np.int32))
    np.testing.assert_array_equal(alone[0], together[0])
    again = rounded.read(0, [*IDS[:32], 7], 0, 128)
    np.testing.assert_array_equal(again, together[0])
