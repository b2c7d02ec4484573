"""Model FLOPs utilisation: the arithmetic of a token, and the peak of a device with its source."""

import pytest

from qwen3_model.config import SIZES
from qwen3_train.layout.flops import training_flops
from qwen3_train.trainer.device_peak import Utilisation, ascend_peak, measured_peak

PLATFORM = """[version]
SoC_version=Ascend910X
[SoCInfo]
ai_core_cnt=24
cube_core_cnt=24
[AICoreSpec]
# MHz
cube_freq=1800
cube_m_size=16
cube_n_size=16
cube_k_size=16
"""


def test_a_token_takes_six_operations_a_weight_and_half_the_square_of_attention():
    model = SIZES["0.6B"]
    matrices = 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072) + 151936 * 1024  # tied head once
    attention = 28 * 6 * 4096 * 16 * 128
    assert training_flops(model, 4096) == 6 * matrices + attention
    adapters = training_flops(model, 4096, adapter_parameters=1000)
    assert adapters == 4 * matrices + attention * 2 // 3 + 6000


@pytest.mark.parametrize("folder", ["data", "x86_64-linux/data", "compiler/data"])
def test_an_npus_peak_comes_from_canns_description(tmp_path, folder):
    place = tmp_path / folder / "platform_config"
    place.mkdir(parents=True)
    (place / "Ascend910X.ini").write_text(PLATFORM, encoding="utf-8")
    peak = ascend_peak("Ascend910X", tmp_path)
    assert peak.flops == 24 * 1800e6 * 2 * 16**3
    assert peak.source == "24 cubes of 16x16x16 at 1800 MHz, Ascend910X.ini of CANN"
    assert ascend_peak("Ascend910Y", tmp_path) is None
    (place / "Ascend910X.ini").write_text("[SoCInfo]\n", encoding="utf-8")
    assert ascend_peak("Ascend910X", tmp_path) is None


def test_a_processor_is_measured():
    assert 1e8 < measured_peak().flops < 1e14


def test_a_timed_peak_gives_way_to_a_faster_step_and_a_stated_one_does_not():
    timed = Utilisation(10, 100.0, is_timed=True)
    assert [timed.at(speed) for speed in (5.0, 20.0, 5.0)] == [0.5, 1.0, 0.25]
    stated = Utilisation(10, 100.0, is_timed=False)
    assert [stated.at(speed) for speed in (20.0, 5.0)] == [2.0, 0.5]
