"""Which device a command takes, and what it needs for it."""

import pytest

from qwen3_model.device.cann import cann_dir, require_cann
from qwen3_model.device.simulation import Simulation, default_device, read_simulation
from qwen3_model.errors import ConfigError, UsageError


def test_only_mindspores_own_variable_asks_for_a_dry_run():
    assert read_simulation({}) is None
    assert read_simulation({"RANK_ID": "1", "RANK_SIZE": "2", "MS_SIMULATION_LEVEL": ""}) is None
    assert read_simulation({"MS_SIMULATION_LEVEL": "1"}) == Simulation(0, 1)
    found = read_simulation({"MS_SIMULATION_LEVEL": "1", "RANK_ID": "3", "RANK_SIZE": "16"})
    assert found == Simulation(3, 16)


@pytest.mark.parametrize(("rank", "ranks"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0"), ("0", "two")])
def test_a_rank_that_the_job_does_not_have_is_refused(rank, ranks):
    with pytest.raises(UsageError, match=f"RANK_ID={rank} is no rank of RANK_SIZE={ranks}"):
        read_simulation({"MS_SIMULATION_LEVEL": "1", "RANK_ID": rank, "RANK_SIZE": ranks})


def test_the_device_is_ascend_where_its_file_is_and_in_a_dry_run(monkeypatch, tmp_path):
    file = tmp_path / "davinci_manager"
    monkeypatch.setattr("qwen3_model.device.simulation.DEVICE_FILE", file)
    assert default_device() == "CPU"
    assert default_device(Simulation()) == "Ascend"
    file.touch()
    assert default_device() == "Ascend"


def test_cann_is_there_when_the_loader_finds_its_library(monkeypatch, tmp_path):
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    for environment in ({}, {"LD_LIBRARY_PATH": ""}, {"LD_LIBRARY_PATH": f":{tmp_path}"}):
        with pytest.raises(ConfigError, match=r"CANN is not set up; `source .*set_env.sh`.*doctor"):
            require_cann(environment)
    (tmp_path / "libascendcl.so").touch()
    require_cann({"LD_LIBRARY_PATH": f"/nowhere:{tmp_path}"})


def test_cann_is_looked_for_where_the_environment_says(tmp_path):
    assert str(cann_dir({})) == "/usr/local/Ascend/ascend-toolkit/latest"
    assert cann_dir({"ASCEND_TOOLKIT_HOME": str(tmp_path)}) == tmp_path
